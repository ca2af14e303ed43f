"""Forward and backward pass of a feed-forward actor and critic, by hand, in numpy.

Arrays are [features, columns]: a column is one agent at one step. Reductions over the few actions then run along
contiguous memory, and the neurons of both networks stand below each other in one array, so that each layer has one
activation and one bias for both. Work arrays are made once; a chunk of columns is small enough for the processor's
cache. The maths is that of `hpc_marl.policies.networks`; a test holds the two together.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_marl.algorithms.flat_parameters import Networks
from hpc_marl.algorithms.work_memory import WorkMemory
from hpc_marl.policies.spec import PolicySpec

Array = NDArray[np.float32]

COLUMNS_OF_CHUNK = 768
"""How many columns to compute at once: with fewer the calls are dear, with 1024 all rows fall on one cache set."""


@dataclass
class Work:
    """Work arrays of one number of rows R; C = N * R columns, agent by agent."""

    ones: Array
    """[C]."""
    zeros: Array
    """[C]."""
    hidden: list[Array]
    """[a + c, C] of each level; after the backward pass of no meaning."""
    gradient: list[Array]
    """[a + c, C] of each level's input to the activation."""
    output: Array
    """[A, C] logits or means; the loss leaves its gradient here."""
    value: Array
    """[C]; the loss leaves its gradient here."""
    value_above_zeros: Array
    """[2, C] `value` and a row for zeros: a product of two terms is several times faster than of one."""
    critic_head: Array
    """[c, 2] for this product; the second column is 0."""
    shared: Array | None
    """[c, R] what a central critic's first level gets from the state."""
    spread: Array | None
    """[c, N, R] that, for every agent that is there."""


class FlatNetworks:
    """Actor and critic of one policy.

    Args:
        spec: the policy, feed-forward.
        parameters: views of the parameters.
        memory: where work arrays lie.
    """

    def __init__(self, spec: PolicySpec, parameters: Networks, memory: WorkMemory) -> None:
        self._spec = spec
        self._parameters = parameters
        actor, critic = spec.policy.hidden_sizes, spec.policy.critic_hidden_sizes
        self._widths = list(itertools.zip_longest(actor, critic, fillvalue=0))
        self._last_actor, self._last_critic = len(actor) - 1, len(critic) - 1
        self._is_tanh = spec.policy.activation == "tanh"
        self._memory = memory

    def work(self, num_rows: int) -> Work:
        """Return work arrays for chunks of R rows; they take the place of any made before."""
        columns, array = num_rows * self._spec.env.num_agents, self._memory.array
        width, last = self._widths[0][1], self._widths[self._last_critic][1]
        ones, zeros, value = array("ones", columns), array("zeros", columns), array("value", 2, columns)
        ones[:], zeros[:] = 1.0, 0.0
        has_state = bool(self._spec.state_input_size)
        return Work(
            ones=ones,
            zeros=zeros,
            hidden=[array(f"hidden{i}", sum(pair), columns) for i, pair in enumerate(self._widths)],
            gradient=[array(f"gradient{i}", sum(pair), columns) for i, pair in enumerate(self._widths)],
            output=array("output", self._spec.output_size, columns),
            value=value[0],
            value_above_zeros=value,
            critic_head=np.zeros((last, 2), np.float32),
            shared=array("shared", width, num_rows) if has_state else None,
            spread=array("spread", width, self._spec.env.num_agents, num_rows) if has_state else None,
        )

    def forward(
        self,
        work: Work,
        own: Array,
        state: Array | None,
        present: Array | None,
        *,
        with_actor: bool = True,
    ) -> None:
        """Fill in `work.value` and, unless it is not wanted, `work.output`.

        Args:
            work: of as many rows.
            own: [own_input_size, C].
            state: [state_input_size, R] for a central critic.
            present: [N, R] 0 where the state must not be seen, else 1; None: 1 everywhere.
            with_actor: whether the actor is wanted, too.
        """
        parameters, before = self._parameters, work.hidden[0]
        for index, (level, (width, _)) in enumerate(zip(parameters.levels, self._widths, strict=True)):
            hidden, start = work.hidden[index], 0 if with_actor else width
            if index == 0:
                np.matmul(parameters.first[start:], own, out=hidden[start:])
                if parameters.state is not None:
                    assert state is not None, "a central critic needs the global state"
                    self._add_state(work, parameters.state, state, present)
            else:
                before_width = self._widths[index - 1][0]
                if level.actor is not None and with_actor:
                    np.matmul(level.actor, before[:before_width], out=hidden[:width])
                if level.critic is not None:
                    np.matmul(level.critic, before[before_width:], out=hidden[width:])
            active = hidden[start:] if start else hidden
            active += level.bias[start:, None]
            if self._is_tanh:
                np.tanh(active, out=active)
            else:
                np.maximum(active, work.zeros, out=active)  # a number in their place takes twice as long
            before = hidden
        if with_actor:
            width = self._widths[self._last_actor][0]
            np.matmul(parameters.actor_head, work.hidden[self._last_actor][:width], out=work.output)
            work.output += parameters.actor_head_bias[:, None]
        width = self._widths[self._last_critic][0]
        np.matmul(parameters.critic_head, work.hidden[self._last_critic][width:], out=work.value)
        work.value += parameters.critic_head_bias

    def backward(
        self, work: Work, own: Array, state: Array | None, present: Array | None, gradient: Networks
    ) -> None:
        """Write the parameters' gradient (but for `log_std`, which no layer has) into `gradient`.

        Args:
            work: as `forward` left it, with the loss's gradient in `work.output` and `work.value`.
            own: [C, own_input_size] transposed, other than for `forward`.
            state: [R, state_input_size] likewise.
            present: as for `forward`.
            gradient: views of a vector of its own.
        """
        self._backward_heads(work, gradient)
        for index in reversed(range(len(self._widths))):
            width = self._widths[index][0]
            hidden, delta = work.hidden[index], work.gradient[index]
            level, later = self._parameters.levels[index], gradient.levels[index]
            if self._is_tanh:
                np.multiply(hidden, hidden, out=hidden)
                np.subtract(1.0, hidden, out=hidden)
            else:
                np.greater(hidden, 0.0, out=hidden)
            np.multiply(delta, hidden, out=delta)
            np.matmul(delta, work.ones, out=later.bias)
            if index == 0:
                np.matmul(delta, own, out=gradient.first)
                if gradient.state is not None:
                    assert state is not None, "a central critic needs the global state"
                    self._backward_state(work, state, present, gradient.state)
                return
            before, before_delta = work.hidden[index - 1], work.gradient[index - 1]
            before_width = self._widths[index - 1][0]
            if level.actor is not None and later.actor is not None:
                np.matmul(delta[:width], before[:before_width].T, out=later.actor)
                np.matmul(level.actor.T, delta[:width], out=before_delta[:before_width])
            if level.critic is not None and later.critic is not None:
                np.matmul(delta[width:], before[before_width:].T, out=later.critic)
                np.matmul(level.critic.T, delta[width:], out=before_delta[before_width:])

    def _backward_heads(self, work: Work, gradient: Networks) -> None:
        parameters, width = self._parameters, self._widths[self._last_actor][0]
        hidden, delta = work.hidden[self._last_actor], work.gradient[self._last_actor]
        np.matmul(work.output, hidden[:width].T, out=gradient.actor_head)
        np.matmul(work.output, work.ones, out=gradient.actor_head_bias)
        np.matmul(parameters.actor_head.T, work.output, out=delta[:width])
        width = self._widths[self._last_critic][0]
        hidden, delta = work.hidden[self._last_critic], work.gradient[self._last_critic]
        np.matmul(hidden[width:], work.value, out=gradient.critic_head)
        gradient.critic_head_bias[0] = np.dot(work.value, work.ones)
        work.critic_head[:, 0] = parameters.critic_head
        work.value_above_zeros[1] = 0.0
        np.matmul(work.critic_head, work.value_above_zeros, out=delta[width:])

    def _add_state(self, work: Work, weight: Array, state: Array, present: Array | None) -> None:
        assert work.shared is not None and work.spread is not None
        np.matmul(weight, state, out=work.shared)
        hidden = work.hidden[0][self._widths[0][0] :].reshape(work.spread.shape)
        if present is None:
            hidden += work.shared[:, None]
        else:
            np.multiply(work.shared[:, None], present, out=work.spread)
            hidden += work.spread

    def _backward_state(self, work: Work, state: Array, present: Array | None, gradient: Array) -> None:
        assert work.shared is not None and work.spread is not None
        delta = work.gradient[0][self._widths[0][0] :].reshape(work.spread.shape)
        if present is not None:
            delta = np.multiply(delta, present, out=work.spread)
        np.add.reduce(delta, axis=1, out=work.shared)
        np.matmul(work.shared, state, out=gradient)
