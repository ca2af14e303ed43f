"""What an environment looks like to the rest of the system: agents, observations, actions, state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_marl.config.fields import setting
from hpc_marl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """Shapes shared by all E environments of a batch and all N agents in each.

    Agents whose spaces differ are padded to the widest: zeros behind a narrower observation, masked-out actions behind
    a smaller action set. Continuous actions travel in [-1, 1]; the adapter scales them to the environment's bounds.

    Exactly one of `num_actions` (discrete) and `action_size` (continuous) is positive.

    Agents that see images have an `image_shape` [C, H, W]. An image travels and is stored as a flat row of
    D = C * H * W bytes, a quarter of what float32 takes; the network gives it its shape back and scales it to [0, 1].
    """

    agent_names: tuple[str, ...] = setting(
        ("agent",), "names of the N agents, in the order of the agent axis"
    )
    observation_size: int = setting(1, "width D of one agent's flat observation", low=1)
    image_shape: tuple[int, ...] = setting(
        (), "[C, H, W] of observations that are images of 8-bit pixels; empty: float32 vectors", low=1
    )
    state_size: int = setting(
        0, "width S of the flat float32 global state; 0 where the environment has none", low=0
    )
    num_actions: int = setting(0, "A of discrete actions 0 .. A-1", low=0)
    action_size: int = setting(0, "A of continuous actions", low=0)
    has_action_mask: bool = setting(False, "whether action_mask [E, N, A] is written; discrete actions only")
    episode_limit: int | None = setting(None, "longest episode, where it is known", unit="env_steps", low=1)

    def __post_init__(self) -> None:
        """Check that actions are of one kind, and that an image has the size of its shape."""
        if (self.num_actions > 0) == (self.action_size > 0):
            raise ConfigError(
                "an EnvSpec has either num_actions > 0 (discrete) or action_size > 0 (continuous)"
            )
        if self.has_action_mask and self.is_continuous:
            raise ConfigError("only discrete actions can be masked")
        if self.image_shape and (
            len(self.image_shape) != 3 or math.prod(self.image_shape) != self.observation_size
        ):
            raise ConfigError(
                f"image_shape={list(self.image_shape)} must be [C, H, W] with C * H * W = observation_size="
                f"{self.observation_size}"
            )

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agent_names)

    @property
    def has_images(self) -> bool:
        """Whether observations are images."""
        return bool(self.image_shape)

    @property
    def observation_dtype(self) -> type[np.generic[Any]]:
        """Type of an observation's numbers: uint8 in images, else float32."""
        return np.uint8 if self.image_shape else np.float32

    @property
    def is_continuous(self) -> bool:
        """Whether actions are vectors in [-1, 1]^A."""
        return self.action_size > 0

    @property
    def noise_size(self) -> int:
        """Random numbers that sampling one agent's action takes: 1 uniform (discrete) or A normals (continuous)."""
        return self.action_size if self.is_continuous else 1
