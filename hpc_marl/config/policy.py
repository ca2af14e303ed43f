"""The shape of the policy and value networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpc_marl.config.fields import setting
from hpc_marl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Actor and critic networks; all agents share their parameters.

    With `conv_channels` they are for images: convolutions and the hidden layers are one torso of actor and critic, and
    `critic_hidden_sizes` come after it; [] makes the value a linear function of it.
    """

    hidden_sizes: tuple[int, ...] = setting(
        (64, 64), "widths of the actor's hidden layers", unit="neurons", low=1
    )
    critic_hidden_sizes: tuple[int, ...] = setting(
        (64, 64), "widths of the critic's hidden layers", unit="neurons", low=1
    )
    activation: Literal["tanh", "relu"] = setting("tanh", "non-linearity of the hidden layers")
    conv_channels: tuple[int, ...] = setting(
        (),
        "images: filters of each convolution before the hidden layers; [] for vectors",
        unit="filters",
        low=1,
    )
    conv_kernels: tuple[int, ...] = setting(
        (), "images: side of each convolution's filters", unit="pixels", low=1
    )
    conv_strides: tuple[int, ...] = setting((), "images: step of each convolution", unit="pixels", low=1)
    recurrent: Literal["none", "gru"] = setting("none", "gru: a GRU cell after the actor's hidden layers")
    memory_size: int = setting(64, "width of the GRU's memory, where there is one", unit="neurons", low=1)
    agent_id: bool = setting(True, "append a one-hot agent id to the inputs, so that agents can differ")
    initial_log_std: float = setting(
        0.0, "log standard deviation of continuous actions at the start, in [-1, 1] units"
    )

    def __post_init__(self) -> None:
        """Check that the layers fit each other."""
        for name, sizes in (
            ("hidden_sizes", self.hidden_sizes),
            ("critic_hidden_sizes", self.critic_hidden_sizes),
        ):
            if not sizes and not (self.conv_channels and name == "critic_hidden_sizes"):
                raise ConfigError(f"{name}=[]: give at least one width, as in [64,64]")
        counts = (len(self.conv_channels), len(self.conv_kernels), len(self.conv_strides))
        if len(set(counts)) > 1:
            raise ConfigError(
                "conv_channels, conv_kernels and conv_strides have {}, {} and {} entries: give one of each for "
                "every convolution".format(*counts)
            )
