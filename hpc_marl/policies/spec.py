"""What a policy is, without its numbers: inputs, outputs, and the names and shapes of its weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_marl.config.policy import PolicyConfig
from hpc_marl.data.spaces import EnvSpec
from hpc_marl.errors import ConfigError

MASKED_LOGIT = -1e9
"""Logit of a forbidden action: finite, so that 0 * log(0) is 0 and gradients stay numbers."""


class ActResult(NamedTuple):
    """What a policy answers to E environments of N agents."""

    action: NDArray[Any]
    """[E, N] int32, or [E, N, A] float32 in policy units (not clipped)."""
    log_prob: NDArray[np.float32]
    """[E, N] log-probability of the action."""
    memory: NDArray[np.float32] | None
    """[E, N, H] to hand in with the next observation; None for feed-forward policies."""
    policy_version: int
    """Version of the weights that acted."""


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """All that both ends need to agree on to exchange weights."""

    env: EnvSpec
    policy: PolicyConfig
    critic: Literal["local", "central"] = "local"

    def __post_init__(self) -> None:
        """Check that the networks can read what the environment shows."""
        if self.env.has_images:
            conv_sizes(self.env, self.policy)
        elif self.policy.conv_channels:
            raise ConfigError(
                f"policy.conv_channels={list(self.policy.conv_channels)}: this environment's agents see vectors of "
                f"{self.env.observation_size} numbers and no images; use policy=mlp or policy=gru"
            )

    @property
    def agent_id_size(self) -> int:
        """Width of the one-hot agent id behind every observation: N, or 0 where it would say nothing."""
        return self.env.num_agents if self.policy.agent_id and self.env.num_agents > 1 else 0

    @property
    def own_input_size(self) -> int:
        """Width of what hidden layers see of the agent itself: its observation (or convolved image) and id."""
        observed = self.env.observation_size
        if self.env.has_images:
            observed = math.prod(conv_sizes(self.env, self.policy)[-1])
        return observed + self.agent_id_size

    @property
    def feature_size(self) -> int:
        """Width of what the actor's head reads: the recurrent memory, or the last hidden layer."""
        return self.memory_size or self.policy.hidden_sizes[-1]

    @property
    def critic_own_size(self) -> int:
        """Width of what the critic sees of the agent itself; of images the features that it shares with the actor."""
        return self.feature_size if self.env.has_images else self.own_input_size

    @property
    def state_input_size(self) -> int:
        """Width of the critic's global input: the state, else what all agents see; 0 for a local critic."""
        if self.critic == "local":
            return 0
        seen = self.feature_size if self.env.has_images else self.env.observation_size
        return self.env.state_size or self.env.num_agents * seen

    @property
    def critic_input_size(self) -> int:
        """Width of all that the critic sees, the recurrent memory left aside."""
        return self.state_input_size + self.critic_own_size

    @property
    def memory_size(self) -> int:
        """H of the recurrent memory; 0 for feed-forward policies."""
        return self.policy.memory_size if self.policy.recurrent == "gru" else 0

    @property
    def output_size(self) -> int:
        """Width of the actor's output: logits, or means of continuous actions."""
        return self.env.action_size if self.env.is_continuous else self.env.num_actions


def conv_sizes(env: EnvSpec, policy: PolicyConfig) -> list[tuple[int, int, int]]:
    """Return [C, H, W] of an image and of what each convolution makes of it.

    Raises:
        ConfigError: the policy has no convolutions, or the image is too small for them.

    >>> conv = PolicyConfig(conv_channels=(32, 64, 64), conv_kernels=(8, 4, 3), conv_strides=(4, 2, 1))
    >>> conv_sizes(EnvSpec(observation_size=4 * 84 * 84, image_shape=(4, 84, 84), num_actions=6), conv)
    [(4, 84, 84), (32, 20, 20), (64, 9, 9), (64, 7, 7)]
    """
    channels, height, width = env.image_shape
    if not policy.conv_channels:
        raise ConfigError(
            f"this environment's agents see images of {channels}x{height}x{width} pixels, and this policy has no "
            "convolutions; use policy=nature_cnn or policy=small_cnn (or gymnasium.wrappers.FlattenObservation)"
        )
    sizes = [(channels, height, width)]
    for filters, kernel, stride in zip(
        policy.conv_channels, policy.conv_kernels, policy.conv_strides, strict=True
    ):
        height, width = ((side - kernel) // stride + 1 for side in (height, width))
        if min(height, width) < 1:
            raise ConfigError(
                f"images of {'x'.join(map(str, env.image_shape))} pixels are too small for convolutions with "
                f"policy.conv_kernels={list(policy.conv_kernels)} and policy.conv_strides={list(policy.conv_strides)}; "
                "use fewer or smaller ones, as in policy.conv_channels=[16,32] policy.conv_kernels=[3,3] "
                "policy.conv_strides=[2,1]"
            )
        sizes.append((filters, height, width))
    return sizes


def actor_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the actor's weights, as in the torch module's state_dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = spec.own_input_size
    if spec.env.has_images:
        sizes = conv_sizes(spec.env, spec.policy)
        for index, (before, after) in enumerate(itertools.pairwise(sizes)):
            kernel = spec.policy.conv_kernels[index]
            shapes[f"convolutions.{index}.weight"] = (after[0], before[0], kernel, kernel)
            shapes[f"convolutions.{index}.bias"] = (after[0],)
    if spec.env.is_continuous:
        shapes["log_std"] = (spec.env.action_size,)
    for index, size in enumerate(spec.policy.hidden_sizes):
        shapes[f"torso.{index}.weight"] = (size, width)
        shapes[f"torso.{index}.bias"] = (size,)
        width = size
    if spec.memory_size:
        gates = 3 * spec.memory_size  # reset, update, candidate: torch.nn.GRU's order
        shapes["gru.weight_input"] = (gates, width)
        shapes["gru.weight_memory"] = (gates, spec.memory_size)
        shapes["gru.bias_input"] = (gates,)
        shapes["gru.bias_memory"] = (gates,)
        width = spec.memory_size
    shapes["head.weight"] = (spec.output_size, width)
    shapes["head.bias"] = (spec.output_size,)
    return shapes


def make_noise(env: EnvSpec, rng: np.random.Generator, num_envs: int) -> NDArray[np.float32]:
    """Draw the random numbers that sampling one action of every agent takes.

    Args:
        env: the environment's spec.
        rng: where they come from.
        num_envs: E.

    Returns:
        [E, N, 1] uniform in [0, 1) for discrete actions, [E, N, A] standard normal for continuous ones.
    """
    shape = (num_envs, env.num_agents, env.noise_size)
    if env.is_continuous:
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.random(shape, dtype=np.float32)
