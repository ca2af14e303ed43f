"""ActorCritic: policy and value of all agents, with shared parameters, in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_marl.policies.distributions import categorical, gaussian, mask_logits
from hpc_marl.policies.networks import ActorNetwork, CriticNetwork, with_agent_id
from hpc_marl.policies.spec import PolicySpec


@dataclass(frozen=True)
class NetworkInputs:
    """What both networks read.

    Leading axes are any for feed-forward policies, [B, L] (B sequences of L steps) for recurrent ones.
    """

    own: Tensor
    """[..., N, own_input_size] observation and agent id; of images [..., N, D] the uint8 pixels alone."""
    state: Tensor | None = None
    """[..., S] global part of a central critic's input, where it can be told from what agents see."""
    present: Tensor | None = None
    """[..., N] float32 0 where the agent is dead, else 1; None where all are there."""
    action_mask: Tensor | None = None
    """[..., N, A] bool."""
    memory: Tensor | None = None
    """[B, N, H] recurrent memory at the first step of every sequence."""
    is_first: Tensor | None = None
    """[B, L] bool; where to zero it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> NetworkInputs:
        """Return the inputs with `function` applied to every tensor that is there."""
        values = {name: None if value is None else function(value) for name, value in vars(self).items()}
        return NetworkInputs(**values)  # type: ignore[arg-type]


class ActorCritic(nn.Module):
    """The networks of one policy, and what can be asked of them.

    Args:
        spec: shapes and sizes.
        seed: of the initial weights.
    """

    def __init__(self, spec: PolicySpec, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.actor = ActorNetwork(spec, generator)
        self.critic = CriticNetwork(spec, generator)

    def inputs(
        self,
        observation: Tensor,
        *,
        state: Tensor | None = None,
        absent: Tensor | None = None,
        action_mask: Tensor | None = None,
        memory: Tensor | None = None,
        is_first: Tensor | None = None,
    ) -> NetworkInputs:
        """Assemble what the networks read.

        Args:
            observation: [..., N, D].
            state: [..., S] of environments that have one.
            absent: [..., N] True for dead agents, whose inputs become zero but for the id, in their own row
                and in the joint observation of the others ("death masking", Yu et al. 2022); None: nobody is.
            action_mask: [..., N, A].
            memory: [B, N, H].
            is_first: [B, L].
        """
        spec = self.spec
        if absent is not None:
            observation = observation.masked_fill(absent.unsqueeze(-1), 0)
        has_images = spec.env.has_images
        own = observation if has_images else with_agent_id(observation, spec.agent_id_size)
        joint = None
        if spec.state_input_size and spec.env.state_size:
            joint = state
        elif spec.state_input_size and not has_images:
            joint = observation.flatten(-2)
        present = None if absent is None or not spec.state_input_size else (~absent).to(torch.float32)
        return NetworkInputs(own, joint, present, action_mask, memory, is_first)

    def core(self, inputs: NetworkInputs) -> tuple[Tensor, Tensor | None]:
        """Return the actor's features [..., N, F] and, if recurrent, memory after every step [B, L, N, H]."""
        features = self.actor.features(inputs.own)
        if self.actor.gru is None:
            return features, None
        assert inputs.memory is not None, "a recurrent policy needs memory"
        memory: Tensor = self.actor.gru(features, inputs.memory, inputs.is_first)
        return memory, memory

    def value(self, inputs: NetworkInputs, features: Tensor | None, memory: Tensor | None) -> Tensor:
        """Return values [..., N].

        Args:
            inputs: as `inputs` assembles them.
            features: of `core`; needed for images only.
            memory: of `core`, where recurrent.
        """
        state, present = inputs.state, inputs.present
        if not self.spec.env.has_images:
            value: Tensor = self.critic(inputs.own, state, present, memory)
            return value
        assert features is not None, "actor and critic share what images show"
        if self.spec.state_input_size and state is None:
            seen = features if present is None else features * present.unsqueeze(-1)
            state = seen.flatten(-2)
        value = self.critic(features, state, present, None)
        return value

    def policy_output(self, features: Tensor, action_mask: Tensor | None) -> Tensor:
        """Return masked logits or means [..., N, A]."""
        output: Tensor = self.actor.head(features)
        return output if self.spec.env.is_continuous else mask_logits(output, action_mask)

    def log_prob_entropy(self, output: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy [..., N] of `action` under `policy_output`'s answer."""
        if self.actor.log_std is not None:
            return gaussian(output, self.actor.log_std, action)
        return categorical(output, action)

    def evaluate_actions(self, inputs: NetworkInputs, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value, each [..., N].

        Args:
            inputs: as `inputs` assembles them.
            action: [..., N] int64, or [..., N, A] float32.
        """
        features, memory = self.core(inputs)
        output = self.policy_output(features, inputs.action_mask)
        log_prob, entropy = self.log_prob_entropy(output, action)
        return log_prob, entropy, self.value(inputs, features, memory)

    def values(self, inputs: NetworkInputs) -> tuple[Tensor, Tensor | None]:
        """Return values [..., N] and, where recurrent, the memory after the last step [B, N, H]."""
        needs_core = self.spec.memory_size or self.spec.env.has_images
        features, memory = self.core(inputs) if needs_core else (None, None)
        return self.value(inputs, features, memory), None if memory is None else memory[:, -1]

    def actor_weights(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of the actor's weights, as `NumpyActor.load` takes them."""
        tensors = self.actor.state_dict()
        if next(iter(tensors.values())).device.type == "cpu":
            return {name: np.array(tensor.numpy(), np.float32, order="C") for name, tensor in tensors.items()}
        flat = (
            torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).cpu().numpy()
        )  # one wait for all
        parts = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors.values()])[:-1])
        return {
            name: part.reshape(tensor.shape)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        }
