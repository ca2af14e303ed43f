"""The shape of the policy and value networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpc_marl.config.fields import setting
from hpc_marl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Actor and critic networks; all agents share their parameters."""

    hidden_sizes: tuple[int, ...] = setting(
        (64, 64), "widths of the actor's hidden layers", unit="neurons", low=1
    )
    critic_hidden_sizes: tuple[int, ...] = setting(
        (64, 64), "widths of the critic's hidden layers", unit="neurons", low=1
    )
    activation: Literal["tanh", "relu"] = setting("tanh", "non-linearity of the hidden layers")
    recurrent: Literal["none", "gru"] = setting("none", "gru: a GRU cell after the actor's hidden layers")
    memory_size: int = setting(64, "width of the GRU's memory, where there is one", unit="neurons", low=1)
    agent_id: bool = setting(True, "append a one-hot agent id to the inputs, so that agents can differ")
    initial_log_std: float = setting(
        0.0, "log standard deviation of continuous actions at the start, in [-1, 1] units"
    )

    def __post_init__(self) -> None:
        """Check that both networks have a hidden layer."""
        for name, sizes in (
            ("hidden_sizes", self.hidden_sizes),
            ("critic_hidden_sizes", self.critic_hidden_sizes),
        ):
            if not sizes:
                raise ConfigError(f"{name}=[]: give at least one width, as in [64,64]")
