"""Which adapter fits what a `_target_` made."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from hpc_marl.config.environment import EnvConfig
from hpc_marl.envs.api import BatchedEnv, MultiAgentEnv
from hpc_marl.envs.gymnasium_env import GymnasiumEnv, GymnasiumMultiAgentEnv
from hpc_marl.envs.gymnasium_vector_env import GymnasiumVectorEnv
from hpc_marl.envs.looped import LoopedEnv
from hpc_marl.envs.targets import import_module
from hpc_marl.errors import ConfigError, EnvContractError

_ACCEPTED = (
    "hpc_marl.envs.BatchedEnv and MultiAgentEnv, gymnasium.Env, gymnasium.vector.VectorEnv and "
    "pettingzoo.ParallelEnv"
)


def makes_gymnasium_id(target: Callable[..., Any]) -> bool:
    """Whether `target` makes environments from the ids of gymnasium's registry."""
    return target in (gymnasium.make, gymnasium.make_vec)


def gymnasium_call(
    target: Callable[..., Any], arguments: dict[str, Any], config: EnvConfig
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Check the id, and return the call that makes what the adapter wants.

    Raises:
        ConfigError: the id is not registered, or has no vectorised class where one is wanted.
    """
    env_id = _registered_id(arguments.get("id"))
    arguments = {**arguments, "id": env_id}
    if config.adapter == "gymnasium_vector":
        if gymnasium.spec(env_id).vector_entry_point is None:
            raise ConfigError(f"{env_id} has no vectorised class of its own; use adapter: gymnasium")
        limit = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
        return partial(gymnasium.make_vec, vectorization_mode="vector_entry_point"), {**arguments, **limit}
    if target is gymnasium.make:
        # The passive checker tests every observation of every step again, and warns about matters of style in
        # packages that are not the user's; check_env is stricter and runs once.
        return target, {"disable_env_checker": True, **arguments}
    return target, arguments


def is_batched(made: Any) -> bool:
    """Whether it steps several environments at once."""
    return isinstance(made, (BatchedEnv, VectorEnv))


def adapt_batched(made: Any, config: EnvConfig, num_envs: int) -> BatchedEnv:
    """Check, and adapt where needed, what steps several environments at once.

    Raises:
        ConfigError: it cannot keep to max_episode_steps, or be without its state.
        EnvContractError: it is of another kind than the adapter takes, or of another number.
    """
    if isinstance(made, VectorEnv) and config.adapter in ("auto", "gymnasium_vector"):
        batched: BatchedEnv = GymnasiumVectorEnv(made)
    elif isinstance(made, BatchedEnv) and config.adapter in ("auto", "batched"):
        batched = made
    else:
        raise _mismatch(made, config)
    target, limit = config.make["_target_"], config.max_episode_steps
    if batched.num_envs != num_envs:
        raise EnvContractError(
            f"{target} made {batched.num_envs} environments where {num_envs} were asked for; "
            "give it a parameter num_envs"
        )
    if limit is not None and batched.spec.episode_limit != limit:
        raise ConfigError(
            f"env.max_episode_steps={limit} cannot be forced on {target}, which resets its environments "
            "itself; set the limit among its own arguments in env.make"
        )
    if batched.spec.state_size and not config.global_state:
        raise ConfigError(
            f"env.global_state=false: {target} writes its state itself; leave it out of its spec instead"
        )
    return batched


def adapt_singles(made: Sequence[Any], config: EnvConfig) -> BatchedEnv:
    """Wrap E single environments and step them in a loop.

    Raises:
        EnvContractError: they are of another kind than the adapter takes.
    """
    singles = [_adapt_single(env, config) for env in made]
    return LoopedEnv(singles, config.max_episode_steps, global_state=config.global_state)


def _adapt_single(made: Any, config: EnvConfig) -> MultiAgentEnv:
    adapter = config.adapter
    if isinstance(made, MultiAgentEnv) and adapter == "auto":
        return made
    if isinstance(made, gymnasium.Env) and adapter in ("auto", "gymnasium", "gymnasium_multi"):
        pair = (made.observation_space, made.action_space)
        has_tuples = all(isinstance(space, spaces.Tuple) for space in pair)
        if adapter == "gymnasium_multi" or (adapter == "auto" and has_tuples):
            return GymnasiumMultiAgentEnv(made)
        return GymnasiumEnv(made)
    if adapter in ("auto", "pettingzoo") and "pettingzoo" in sys.modules:
        # Whoever made a ParallelEnv has imported pettingzoo; nobody else waits for its import.
        from pettingzoo import AECEnv, ParallelEnv

        from hpc_marl.envs.mpe_env import without_wrappers
        from hpc_marl.envs.pettingzoo_env import PettingZooEnv

        if isinstance(made, ParallelEnv):
            return PettingZooEnv(without_wrappers(made) if adapter == "auto" else made)
        if isinstance(made, AECEnv):
            raise EnvContractError(
                f"{config.make['_target_']} made the turn-based environment {made}; use its parallel_env, "
                "or pettingzoo.utils.aec_to_parallel where its agents may as well act at the same time"
            )
    raise _mismatch(made, config)


def _registered_id(env_id: Any) -> str:
    """Return the id without its module, `module:Name-v0`, which is imported."""
    if not isinstance(env_id, str):
        raise ConfigError(
            f"env.make.id={env_id!r}: expected the id of a gymnasium environment, such as CartPole-v1"
        )
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, f"env.make.id={env_id!r}")
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        known = sorted(gymnasium.registry)
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"close ones: {', '.join(close)}" if close else f"none of the {len(known)} registered is close"
        raise ConfigError(
            f"env.make.id={env_id!r} is not registered with gymnasium; {hint}. "
            "env.imports lists the modules that register more ids"
        ) from error
    return name


def _mismatch(made: Any, config: EnvConfig) -> EnvContractError:
    wanted = "" if config.adapter == "auto" else f", which adapter: {config.adapter} does not take"
    kind = f"{type(made).__module__}.{type(made).__qualname__}"
    return EnvContractError(f"{config.make['_target_']} made a {kind}{wanted}; known kinds are {_ACCEPTED}")
