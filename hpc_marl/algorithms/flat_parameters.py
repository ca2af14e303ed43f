"""All parameters of a feed-forward policy as one vector, and Adam on it.

One vector makes the optimiser, the gradient's norm and the exchange between ranks a handful of passes over memory,
instead of as many calls for each of a dozen small tensors. The torch model's parameters become views of the same
memory, so that whatever reads or writes them (checkpoints, PopArt, actors' weights) goes on as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpc_marl.policies.spec import PolicySpec

Array = NDArray[np.float32]

_ALIGNMENT = 16  # float32 numbers in a cache line
_BETAS = (0.9, 0.999)  # torch.optim.Adam's


class Level(NamedTuple):
    """One hidden layer of both networks: their neurons stand below each other, first the actor's."""

    actor: Array | None
    """[a, in] weight; None on the first level, whose `weight` is one for both, and where the actor has ended."""
    critic: Array | None
    """[c, in]."""
    bias: Array
    """[a + c]."""


class Networks(NamedTuple):
    """One vector's numbers as the networks use them: parameters, or their gradient."""

    first: Array
    """[a + c, own_input_size] weight of the first level, for both networks at once."""
    state: Array | None
    """[c, state_input_size] what a central critic's first level adds."""
    levels: tuple[Level, ...]
    actor_head: Array
    """[output_size, a]."""
    actor_head_bias: Array
    """[output_size]."""
    critic_head: Array
    """[c]."""
    critic_head_bias: Array
    """[1]."""
    log_std: Array | None
    """[action_size]."""


class Layout:
    """Where each parameter lies in the vector.

    Attributes:
        size: numbers in the vector; those between parameters, for alignment, stay 0.
        names: the parameters' names in the torch model.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.size = 0
        for group in _groups(spec):
            for name, shape in group.items():
                self._places[name] = (self.size, shape)
                self.size += math.prod(shape)
            self.size = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        self.names = tuple(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter."""
        return self._places[name][1]

    def view(self, vector: Array, name: str) -> Array:
        """Return one parameter's part of a vector [size]."""
        start, shape = self._places[name]
        return vector[start : start + math.prod(shape)].reshape(shape)

    def networks(self, vector: Array) -> Networks:
        """Return a vector's parts as the networks use them."""
        actor_sizes, critic_sizes = self._spec.policy.hidden_sizes, self._spec.policy.critic_hidden_sizes
        levels = []
        for index in range(max(len(actor_sizes), len(critic_sizes))):
            of_actor = _actor_layer(index) if index < len(actor_sizes) else None
            of_critic = _critic_layer(index) if index < len(critic_sizes) else None
            biases = [name[1] for name in (of_actor, of_critic) if name is not None]
            levels.append(
                Level(
                    self.view(vector, of_actor[0]) if of_actor and index else None,
                    self.view(vector, of_critic[0]) if of_critic and index else None,
                    self._joined(vector, biases),
                )
            )
        return Networks(
            self._joined(vector, [_actor_layer(0)[0], _critic_layer(0)[0]]),
            self._optional(vector, "critic.state_weight"),
            tuple(levels),
            self.view(vector, "actor.head.weight"),
            self.view(vector, "actor.head.bias"),
            self.view(vector, "critic.head.weight").reshape(-1),
            self.view(vector, "critic.head.bias"),
            self._optional(vector, "actor.log_std"),
        )

    def _optional(self, vector: Array, name: str) -> Array | None:
        return self.view(vector, name) if name in self._places else None

    def _joined(self, vector: Array, names: list[str]) -> Array:
        """Return neighbours as one array, joined along the first axis."""
        parts = [self.view(vector, name) for name in names]
        start = self._places[names[0]][0]
        joined = vector[start : start + sum(part.size for part in parts)]
        return joined.reshape(-1, *parts[0].shape[1:])


def _actor_layer(index: int) -> tuple[str, str]:
    """Return the names of weight and bias."""
    return f"actor.torso.{index}.weight", f"actor.torso.{index}.bias"


def _critic_layer(index: int) -> tuple[str, str]:
    if index == 0:
        return "critic.own_weight", "critic.first_bias"
    return f"critic.hidden.{index - 1}.weight", f"critic.hidden.{index - 1}.bias"


def _groups(spec: PolicySpec) -> list[dict[str, tuple[int, ...]]]:
    """Return names and shapes; what is used as one array stands in one group, in order."""
    actor, critic = spec.policy.hidden_sizes, spec.policy.critic_hidden_sizes
    groups: list[dict[str, tuple[int, ...]]] = []
    for index in range(max(len(actor), len(critic))):
        weights: dict[str, tuple[int, ...]] = {}
        biases: dict[str, tuple[int, ...]] = {}
        for sizes, layer in ((actor, _actor_layer), (critic, _critic_layer)):
            if index < len(sizes):
                weight, bias = layer(index)
                weights[weight] = (sizes[index], sizes[index - 1] if index else spec.own_input_size)
                biases[bias] = (sizes[index],)
        groups += [weights, biases]
    if spec.state_input_size:
        groups.append({"critic.state_weight": (critic[0], spec.state_input_size)})
    groups.append({"actor.head.weight": (spec.output_size, actor[-1])})
    groups.append({"actor.head.bias": (spec.output_size,)})
    groups.append({"critic.head.weight": (1, critic[-1])})
    groups.append({"critic.head.bias": (1,)})
    if spec.env.is_continuous:
        groups.append({"actor.log_std": (spec.env.action_size,)})
    return groups


def aligned_zeros(size: int) -> Array:
    """Return [size] zeros that begin at a cache line."""
    memory = np.zeros(size + _ALIGNMENT, np.float32)
    offset = -(memory.ctypes.data // memory.itemsize) % _ALIGNMENT
    return memory[offset : offset + size]


def share_memory(model: nn.Module, layout: Layout) -> Array:
    """Move a model's parameters into one vector; return it: whoever changes it changes the model."""
    vector = aligned_zeros(layout.size)
    for name, parameter in model.named_parameters():
        view = torch.from_numpy(layout.view(vector, name))
        view.copy_(parameter.data)
        parameter.data = view
    return vector


class FlatAdam:
    """Adam (Kingma and Ba 2015) on one vector; the arithmetic and the state are torch.optim.Adam's.

    Args:
        values: [size] what is to be optimised, changed in place.
        eps: added to the denominator.
    """

    def __init__(self, values: Array, eps: float) -> None:
        self._values, self._eps = values, eps
        self._num_steps = 0
        self._mean, self._square, self._work = (aligned_zeros(values.size) for _ in range(3))

    def step(self, gradient: Array, learning_rate: float) -> None:
        """Go one step down the gradient [size]."""
        self._num_steps += 1
        beta, beta_square = _BETAS
        mean, square, work = self._mean, self._square, self._work
        np.subtract(gradient, mean, out=work)
        work *= 1 - beta
        mean += work
        np.multiply(gradient, gradient, out=work)
        work *= 1 - beta_square
        square *= beta_square
        square += work
        correction = math.sqrt(1 - beta_square**self._num_steps)
        np.sqrt(square, out=work)
        work *= 1 / correction
        work += self._eps
        np.divide(mean, work, out=work)
        work *= learning_rate / (1 - beta**self._num_steps)
        self._values -= work

    def state(self, layout: Layout) -> dict[str, Array]:
        """Return copies of the state by parameter, as torch.optim.Adam has it; nothing before the first step."""
        if not self._num_steps:
            return {}
        found: dict[str, Array] = {}
        for name in layout.names:
            found[f"step.{name}"] = np.array(self._num_steps, np.float32)
            found[f"exp_avg.{name}"] = layout.view(self._mean, name).copy()
            found[f"exp_avg_sq.{name}"] = layout.view(self._square, name).copy()
        return found

    def load(self, state: Mapping[str, NDArray[np.generic]], layout: Layout) -> None:
        """Go on from what `state`, or a torch.optim.Adam, returned."""
        self._num_steps = 0
        self._mean[:], self._square[:] = 0.0, 0.0
        for name in layout.names:
            if f"step.{name}" in state:
                self._num_steps = int(state[f"step.{name}"])
                layout.view(self._mean, name)[...] = state[f"exp_avg.{name}"]
                layout.view(self._square, name)[...] = state[f"exp_avg_sq.{name}"]
