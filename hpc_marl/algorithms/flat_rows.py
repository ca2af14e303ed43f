"""A SampleBatch as rows of numbers, and chunks of them as the hand-written passes read them.

All that one agent at one step brings along lies together in memory: its networks' input, its action and what is
estimated about it. Drawing a chunk of a minibatch is then one gather of whole rows, while they are hot in the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpc_marl.algorithms.minibatches import NUM_SCALARS, absent_agents
from hpc_marl.algorithms.work_memory import WorkMemory
from hpc_marl.data.samples import SampleBatch
from hpc_marl.policies.spec import PolicySpec

Array = NDArray[np.float32]
Indices = NDArray[np.int64] | slice


class FlatRows:
    """The rows of one batch: row t * E + e is step t of environment e; E more are what is seen after the last step.

    Args:
        spec: the policy, feed-forward.
        batch: what actors sent.

    Attributes:
        table: [N, (T+1) * E, K] by `Columns`.
        state: [(T+1) * E, state_input_size] for a central critic; None for a local one.
        has_absent: whether there are agents that must not see the state.
        live: rows of the T steps in which somebody acted, in order.
        num_alive: who acted in each of these.
    """

    def __init__(self, spec: PolicySpec, batch: SampleBatch) -> None:
        self.num_steps, self.num_envs = batch.num_steps, batch.num_envs
        self._columns = Columns(spec)
        self.table = np.empty(
            (spec.env.num_agents, len(batch.alive) * batch.num_envs, self._columns.size), np.float32
        )
        absent = absent_agents(batch)
        self.has_absent = absent is not None and bool(spec.state_input_size)
        observation = batch.observation
        if absent is not None:  # "death masking", as in ActorCritic.inputs
            observation = np.where(absent[..., None], np.float32(0), observation)
        self._fill(self._columns.observation, observation)
        if spec.agent_id_size:
            self.table[..., self._columns.agent_id] = np.eye(spec.agent_id_size, dtype=np.float32)[:, None]
        if self.has_absent and absent is not None:
            self._fill(self._columns.present, ~absent[..., None])
        if batch.action_mask is not None:
            self._fill(self._columns.action_mask, batch.action_mask)
        alive, action = batch.alive[:-1], batch.action.reshape(*batch.alive[:-1].shape, -1)
        self._fill(self._columns.action, action if alive.all() else np.where(alive[..., None], action, 0))
        self.state: Array | None = None
        if spec.state_input_size:
            joint = batch.state if spec.env.state_size else observation
            assert joint is not None, "a central critic needs the global state"
            self.state = np.ascontiguousarray(joint, np.float32).reshape(-1, spec.state_input_size)
        count = alive.sum(axis=2, dtype=np.int64).reshape(-1)
        self.live = np.flatnonzero(count)
        self.num_alive = count[self.live]

    def fill_scalars(self, scalars: list[Array]) -> None:
        """Take in five arrays [T, E, N]: old log-probability, advantage, value target, old value, alive."""
        assert len(scalars) == NUM_SCALARS
        start = self._columns.scalars.start
        for index, values in enumerate(scalars):
            self._fill(slice(start + index, start + index + 1), values[..., None])

    def _fill(self, columns: slice, values: NDArray[np.generic]) -> None:
        """Write [T, E, N, width], or with T + 1; where it is T, the last rows become 0."""
        by_agent = values.reshape(-1, *values.shape[2:]).swapaxes(0, 1)
        self.table[:, : by_agent.shape[1], columns] = by_agent
        self.table[:, by_agent.shape[1] :, columns] = 0.0


class Columns:
    """Where each number stands in a row."""

    def __init__(self, spec: PolicySpec) -> None:
        env = spec.env
        widths = {
            "observation": env.observation_size,
            "agent_id": spec.agent_id_size,
            "action": env.action_size or 1,
            "present": 1 if spec.state_input_size else 0,
            "action_mask": env.num_actions if env.has_action_mask else 0,
            "scalars": NUM_SCALARS,
        }
        self.size = 0
        places = {}
        for name, width in widths.items():
            places[name] = slice(self.size, self.size + width)
            self.size += width
        self.observation, self.agent_id = places["observation"], places["agent_id"]
        self.action, self.present = places["action"], places["present"]
        self.action_mask, self.scalars = places["action_mask"], places["scalars"]
        self.own = slice(0, spec.own_input_size)


class Chunk:
    """R rows that are worked on at once; C = N * R columns, agent by agent.

    Args:
        memory: where its arrays lie.
        spec: the policy.
        num_rows: R.

    Attributes:
        own: [own_input_size, C].
        own_rows: [C, own_input_size].
        action: [1, C] whole numbers, or [action_size, C].
        action_mask: [A, C] 1 where allowed, else 0; None where there are no masks.
        scalars: [5, C] as `FlatRows.fill_scalars` takes them.
        state: [state_input_size, R] of a central critic.
        state_rows: [R, state_input_size].
        present: [N, R] 0 where the state must not be seen, else 1; None: 1 everywhere.
    """

    def __init__(self, memory: WorkMemory, spec: PolicySpec, num_rows: int) -> None:
        columns, num_agents = Columns(spec), spec.env.num_agents
        self._rows = memory.array("rows", num_agents, num_rows, columns.size)
        flat = self._rows.reshape(-1, columns.size)
        self._flat, self._across = flat.T, memory.array("across", *flat.T.shape)
        self.own_rows, self.own = flat[:, columns.own], self._across[columns.own]
        self.action, self.scalars = self._across[columns.action], self._across[columns.scalars]
        has_mask = spec.env.has_action_mask
        self.action_mask = self._across[columns.action_mask] if has_mask else None
        self.state: Array | None = None
        self.state_rows: Array | None = None
        self.present: Array | None = None
        self._present: Array | None = None
        if spec.state_input_size:
            self._present = self._across[columns.present].reshape(num_agents, num_rows)
            self.state_rows = memory.array("state_rows", num_rows, spec.state_input_size)
            self.state = memory.array("state", *self.state_rows.T.shape)

    def read(self, rows: FlatRows, index: Indices) -> None:
        """Copy R rows of a batch."""
        if isinstance(index, slice):
            self._rows[...] = rows.table[:, index]
        else:
            np.take(rows.table, index, axis=1, out=self._rows, mode="clip")  # unlike "raise", without a copy
        np.copyto(self._across, self._flat)
        self.present = self._present if rows.has_absent else None
        if self.state is not None and self.state_rows is not None and rows.state is not None:
            if isinstance(index, slice):
                self.state_rows[...] = rows.state[index]
            else:
                np.take(rows.state, index, axis=0, out=self.state_rows, mode="clip")
            np.copyto(self.state, self.state_rows.T)
