"""`make_env`: from an EnvConfig to a BatchedEnv, whatever its `_target_` makes."""

from __future__ import annotations

from hpc_marl.config.environment import EnvConfig
from hpc_marl.envs import targets
from hpc_marl.envs.api import BatchedEnv
from hpc_marl.errors import ConfigError


def make_env(config: EnvConfig, num_envs: int) -> BatchedEnv:
    """Make `num_envs` environments that step together.

    Args:
        config: what to make; `adapter: auto` goes by the type of what `_target_` makes. A `_target_` with a
            parameter `num_envs` is called once with it, any other once per environment.
        num_envs: E.

    Raises:
        ConfigError: the configuration names something that is not there or is no environment.
        EnvContractError: the environment is of a kind that cannot be used.

    >>> env = make_env(EnvConfig(), num_envs=4)
    >>> env.spec.num_agents, env.spec.observation_size, env.spec.num_actions, env.num_envs
    (1, 4, 2, 4)
    >>> env.close()
    """
    # Here, because it imports gymnasium, which those who only write a MultiAgentEnv do not wait for.
    from hpc_marl.envs import adapters

    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs}: must be >= 1")
    for module in config.imports:
        targets.import_module(module, f"env.imports, {module!r}")
    target = targets.resolve(config.make["_target_"])
    arguments = {key: value for key, value in config.make.items() if key != "_target_"}
    if adapters.makes_gymnasium_id(target):
        target, arguments = adapters.gymnasium_call(target, arguments, config)
    if targets.has_num_envs(target):
        return adapters.adapt_batched(
            targets.call(target, {**arguments, "num_envs": num_envs}), config, num_envs
        )
    first = targets.call(target, arguments)
    if adapters.is_batched(first):
        return adapters.adapt_batched(first, config, num_envs)
    return adapters.adapt_singles(
        [first, *(targets.call(target, arguments) for _ in range(num_envs - 1))], config
    )
