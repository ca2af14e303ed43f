"""Which environment, and how it is turned into arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hpc_marl.config.fields import setting
from hpc_marl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """One environment: a `_target_` that makes it, and what the adapter does with it."""

    name: str = setting("cartpole", "short name; the default experiment and trial names use it")
    make: dict[str, Any] = setting(
        {"_target_": "gymnasium.make", "id": "CartPole-v1"},
        "_target_: dotted path of a class or function; every other key is one of its arguments",
    )
    imports: tuple[str, ...] = setting(
        (), "modules to import first, such as those that register gymnasium ids"
    )
    adapter: Literal["auto", "gymnasium", "gymnasium_vector", "gymnasium_multi", "pettingzoo", "batched"] = (
        setting(
            "auto",
            "how to read what _target_ makes; auto goes by its type, and leaves out PettingZoo's wrappers around mpe2",
        )
    )
    reward_sharing: Literal["individual", "sum", "mean"] = setting(
        "individual",
        "what each agent is trained on: its own reward, or the team's sum or mean (common reward)",
    )
    global_state: bool = setting(
        True,
        "use the environment's global state, where it has one; without it a central critic reads all observations",
    )
    max_episode_steps: int | None = setting(
        None,
        "truncate episodes after this many steps; null leaves it to the environment",
        unit="env_steps",
        low=1,
    )

    def __post_init__(self) -> None:
        """Check that there is something to make."""
        if not isinstance(self.make.get("_target_"), str):
            raise ConfigError("make._target_ is missing: the dotted path of what makes the environment")
