"""Actor and critic networks; leading axes are free, the last two are agents and features.

    observation ++ agent id ──► torso ──► [GRU] ──► head ──► logits | means          (actor)
                    └────────────────────────┐ │
    [global state] ──────────────────────► first layer ──► hidden layers ──► head ──► value   (critic)

Without a GRU actor and critic share nothing but the input. With one the critic also reads the GRU's output,
so that one memory serves both, as in IMPALA (Espeholt et al. 2018).

    image ──► convolutions ++ agent id ──► torso ──► [GRU] ─┬─► head ──► logits | means
                         [global state | all agents' torsos] ┴─► [hidden layers] ──► head ──► value

Images are convolved once: actor and critic share all that comes before the heads, as is usual for PPO on
Atari (Schulman et al. 2017).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_marl.policies.convolutions import Convolutions
from hpc_marl.policies.spec import PolicySpec

_SQRT2 = math.sqrt(2.0)
_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


def orthogonal(rows: int, columns: int, gain: float, generator: torch.Generator) -> Tensor:
    """Return a random [rows, columns] matrix with orthogonal rows or columns, times `gain`."""
    return nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)


def linear(in_size: int, out_size: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer of orthogonal weight and zero bias; torch's global random state is left alone."""
    # nn.utils.skip_init would load sympy, which takes a trainer half a second.
    with torch.random.fork_rng(devices=()):
        layer = nn.Linear(in_size, out_size)
    layer.weight.data.copy_(orthogonal(out_size, in_size, gain, generator))
    nn.init.zeros_(layer.bias)
    return layer


def with_agent_id(observed: Tensor, size: int) -> Tensor:
    """Return `observed` [..., N, F] with a one-hot id of the agent behind it, where `size` is N; 0: as it is."""
    if not size:
        return observed
    one_hot = torch.eye(size, dtype=observed.dtype, device=observed.device)
    return torch.cat([observed, one_hot.expand(*observed.shape[:-1], -1)], dim=-1)


def _hidden_layers(sizes: Sequence[int], generator: torch.Generator) -> nn.ModuleList:
    return nn.ModuleList(linear(a, b, _SQRT2, generator) for a, b in itertools.pairwise(sizes))


class Gru(nn.Module):
    """A gated recurrent unit whose memory is zeroed where an episode begins (gates as torch.nn.GRU's)."""

    def __init__(self, in_size: int, memory_size: int, generator: torch.Generator) -> None:
        super().__init__()
        blocks = [orthogonal(memory_size, in_size, 1.0, generator) for _ in range(3)]
        self.weight_input = nn.Parameter(torch.cat(blocks))
        blocks = [orthogonal(memory_size, memory_size, 1.0, generator) for _ in range(3)]
        self.weight_memory = nn.Parameter(torch.cat(blocks))
        self.bias_input = nn.Parameter(torch.zeros(3 * memory_size))
        self.bias_memory = nn.Parameter(torch.zeros(3 * memory_size))

    def forward(self, features: Tensor, memory: Tensor, is_first: Tensor | None) -> Tensor:
        """Run over sequences.

        Args:
            features: [B, L, N, F].
            memory: [B, N, H] before the first step.
            is_first: [B, L] bool, zero the memory before these steps; None: nowhere.

        Returns:
            [B, L, N, H] memory after every step.
        """
        # the input's share of all steps is one large product; only the memory's share must go step by step
        input_gates = functional.linear(features, self.weight_input, self.bias_input).unbind(1)
        keep = None if is_first is None else (~is_first).to(features.dtype)[:, :, None, None].unbind(1)
        outputs = []
        for step, gates in enumerate(input_gates):
            if keep is not None:
                memory = memory * keep[step]
            input_reset, input_update, input_candidate = gates.chunk(3, dim=-1)
            reset, update, candidate = functional.linear(memory, self.weight_memory, self.bias_memory).chunk(
                3, -1
            )
            reset = torch.sigmoid(input_reset + reset)
            update = torch.sigmoid(input_update + update)
            candidate = torch.tanh(input_candidate + reset * candidate)
            memory = candidate + update * (memory - candidate)
            outputs.append(memory)
        return torch.stack(outputs, dim=1)


class ActorNetwork(nn.Module):
    """Own input to logits or means; the names of its parameters are those of `actor_shapes`."""

    def __init__(self, spec: PolicySpec, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (spec.own_input_size, *spec.policy.hidden_sizes)
        self.activation = _ACTIVATIONS[spec.policy.activation]
        self.convolutions = Convolutions(spec, generator) if spec.env.has_images else None
        self.agent_id_size = spec.agent_id_size
        self.torso = _hidden_layers(sizes, generator)
        self.gru = Gru(sizes[-1], spec.memory_size, generator) if spec.memory_size else None
        self.head = linear(spec.memory_size or sizes[-1], spec.output_size, 0.01, generator)
        self.log_std: nn.Parameter | None = None
        if spec.env.is_continuous:
            self.log_std = nn.Parameter(torch.full((spec.env.action_size,), spec.policy.initial_log_std))

    def features(self, own: Tensor) -> Tensor:
        """Return the torso's output [..., N, F] for `own`, as `NetworkInputs` has it."""
        if self.convolutions is not None:
            own = with_agent_id(self.convolutions(own), self.agent_id_size)
        for layer in self.torso:
            own = self.activation(layer(own))
        return own


class CriticNetwork(nn.Module):
    """Own input, global state and recurrent memory to one value per agent.

    Of images the own input is the torso's output, which includes the memory.
    """

    def __init__(self, spec: PolicySpec, generator: torch.Generator) -> None:
        super().__init__()
        own, state = spec.critic_own_size, spec.state_input_size
        memory = 0 if spec.env.has_images else spec.memory_size
        sizes = spec.policy.critic_hidden_sizes
        self.is_linear = not sizes
        if self.is_linear:
            self.head = linear(own + state, 1, 1.0, generator)
            return
        self.activation = _ACTIVATIONS[spec.policy.activation]
        # one layer over [own, state, memory], in blocks: the state's share is computed once for all N agents
        first = orthogonal(sizes[0], own + state + memory, _SQRT2, generator)
        self.own_weight = nn.Parameter(first[:, :own].clone())
        self.state_weight = nn.Parameter(first[:, own : own + state].clone()) if state else None
        self.memory_weight = nn.Parameter(first[:, own + state :].clone()) if memory else None
        self.first_bias = nn.Parameter(torch.zeros(sizes[0]))
        self.hidden = _hidden_layers(sizes, generator)
        self.head = linear(sizes[-1], 1, 1.0, generator)

    def forward(
        self, own: Tensor, state: Tensor | None, present: Tensor | None, memory: Tensor | None
    ) -> Tensor:
        """Return values [..., N], normalised where the algorithm normalises.

        Args:
            own: [..., N, critic_own_size].
            state: [..., S] global state, for a central critic.
            present: [..., N] 0 where the state must not be seen (dead agents), else 1; None: 1 everywhere.
            memory: [..., N, H] the GRU's output, where there is one.
        """
        if self.is_linear:
            return self._linear(own, state, present)
        hidden = functional.linear(own, self.own_weight, self.first_bias)
        if self.state_weight is not None:
            assert state is not None, "a central critic needs the global state"
            shared = functional.linear(state, self.state_weight).unsqueeze(-2)
            hidden = hidden + (shared if present is None else shared * present.unsqueeze(-1))
        if self.memory_weight is not None:
            assert memory is not None, "a recurrent policy needs memory"
            hidden = hidden + functional.linear(memory, self.memory_weight)
        hidden = self.activation(hidden)
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        values: Tensor = self.head(hidden).squeeze(-1)
        return values

    def _linear(self, own: Tensor, state: Tensor | None, present: Tensor | None) -> Tensor:
        size = own.shape[-1]
        own_weight, state_weight = self.head.weight[:, :size], self.head.weight[:, size:]
        values = functional.linear(own, own_weight, self.head.bias).squeeze(-1)
        if state_weight.shape[1]:
            assert state is not None, "a central critic needs the global state"
            shared = functional.linear(state, state_weight)
            values = values + (shared if present is None else shared * present)
        return values
