"""What a policy is, without its numbers: inputs, outputs, and the names and shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_marl.config.policy import PolicyConfig
from hpc_marl.data.spaces import EnvSpec

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

    @property
    def agent_id_size(self) -> int:
        """Width of the one-hot agent id behind every observation: N, or 0 where it would say nothing."""
        return self.env.num_agents if self.policy.agent_id and self.env.num_agents > 1 else 0

    @property
    def own_input_size(self) -> int:
        """Width of what an agent's networks see of the agent itself: its observation and its id."""
        return self.env.observation_size + self.agent_id_size

    @property
    def state_input_size(self) -> int:
        """Width of the critic's global input: the state, else all observations; 0 for a local critic."""
        if self.critic == "local":
            return 0
        return self.env.state_size or self.env.num_agents * self.env.observation_size

    @property
    def critic_input_size(self) -> int:
        """Width of all that the critic sees, the recurrent memory left aside."""
        return self.state_input_size + self.own_input_size

    @property
    def memory_size(self) -> int:
        """H of the recurrent memory; 0 for feed-forward policies."""
        return self.policy.memory_size if self.policy.recurrent == "gru" else 0

    @property
    def output_size(self) -> int:
        """Width of the actor's output: logits, or means of continuous actions."""
        return self.env.action_size if self.env.is_continuous else self.env.num_actions


def actor_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the actor's weights, as in the torch module's state_dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = spec.own_input_size
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
