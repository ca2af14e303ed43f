"""`hpc-marl check-env`: an environment against the contract that training relies on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.errors import HpcMarlError
from hpc_marl.exit_codes import exit_code_of


def check_environment(arguments: Sequence[str]) -> int:
    """Test an environment against the contract: `hpc-marl check-env [env=FILE ...]`."""
    parser = argparse.ArgumentParser(
        prog="hpc-marl check-env",
        description="Test an environment against the contract that training relies on.",
    )
    parser.add_argument("overrides", nargs="*", help="as for `hpc-marl train`: env=cartpole, env.make.id=...")
    parser.add_argument("--config-dir", "-cd", help="add YAML files of your own, laid out like conf/")
    options = parser.parse_intermixed_args(arguments)
    # Environments of one's own are modules beside which one stands; a console script does not look there.
    sys.path.insert(0, os.getcwd())
    try:
        from hpc_marl.composing.compose import compose_experiment
        from hpc_marl.envs import check_env, make_env

        config = compose_experiment(options.overrides, options.config_dir).env
        check_env(config)
        env = make_env(config, 1)
        spec = env.spec
        env.close()
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    finally:
        sys.path.remove(os.getcwd())
    sys.stdout.write(f"{config.name} keeps the contract: {_described(spec)}\n")
    return 0


def _described(spec: EnvSpec) -> str:
    actions = (
        f"{spec.action_size} continuous actions" if spec.is_continuous else f"{spec.num_actions} actions"
    )
    seen = f"observation_size {spec.observation_size}"
    if spec.has_images:
        seen = f"images of {'x'.join(map(str, spec.image_shape))} pixels"
    parts = [
        f"{spec.num_agents} agents ({', '.join(spec.agent_names)})" if spec.num_agents > 1 else "1 agent",
        seen,
        f"state_size {spec.state_size}" if spec.state_size else "no global state",
        actions + (" with masks" if spec.has_action_mask else ""),
        f"episodes of at most {spec.episode_limit} env_steps" if spec.episode_limit else "no episode limit",
    ]
    return ", ".join(parts)
