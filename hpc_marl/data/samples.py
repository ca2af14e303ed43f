"""SampleBatch: T steps of E environments with N agents, written in place into one flat buffer.

Axis legend, used throughout the project: T time, E environments, N agents, D observation, S state, A actions, H memory,
C = T / chunk length. An array at T+1 has one more entry: what the agents see after the last step.

Episodes follow each other by Gymnasium's *next-step autoreset*: when an episode ends at step t, observation[t+1] is its
true final observation with alive[t+1] False; step t+1 then resets the environment (its action is ignored, its reward is
0), and observation[t+2] is the first of the next episode (is_first[t+2] True). So `observation[t+1]` is always the
right bootstrap input for step t, and `alive[:T]` is exactly the mask of entries to learn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec

_ALIGNMENT = 64  # bytes; a cache line, so that no two fields share one


@dataclass
class SampleBatch:
    """Views of one batch's arrays; None where the environment or the policy has no such thing."""

    observation: NDArray[Any]
    """[T+1, E, N, D] float32, or uint8 where the agents see images."""
    state: NDArray[np.float32] | None
    """[T+1, E, S] global state."""
    action_mask: NDArray[np.bool_] | None
    """[T+1, E, N, A] True where the action is allowed; all True where alive is False."""
    alive: NDArray[np.bool_]
    """[T+1, E, N] whether the agent acts on this observation."""
    is_first: NDArray[np.bool_]
    """[T+1, E] whether this observation begins an episode."""
    action: NDArray[Any]
    """[T, E, N] int32, or [T, E, N, A] float32 in policy units (not clipped)."""
    log_prob: NDArray[np.float32]
    """[T, E, N] log-probability under the policy that acted."""
    reward: NDArray[np.float32]
    """[T, E, N] what the agent is trained on, in environment units."""
    terminated: NDArray[np.bool_]
    """[T, E, N] the agent's episode ended for good at this step: no bootstrap."""
    truncated: NDArray[np.bool_]
    """[T, E, N] it was cut off at this step: bootstrap from observation[t+1]."""
    policy_version: NDArray[np.int64]
    """[T] version of the policy that acted."""
    memory: NDArray[np.float32] | None
    """[C, E, N, H] recurrent memory at the first step of every chunk."""

    @property
    def num_steps(self) -> int:
        """T."""
        return int(self.action.shape[0])

    @property
    def num_envs(self) -> int:
        """E."""
        return int(self.action.shape[1])

    @property
    def env_steps(self) -> int:
        """Environment steps in it: those in which at least one agent acted."""
        return int(self.alive[:-1].any(axis=2).sum())

    @property
    def agent_steps(self) -> int:
        """Agent steps in it: the entries that can be learned from."""
        return int(self.alive[:-1].sum())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that are there, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: array for name, array in named if array is not None}


@dataclass(frozen=True)
class SampleLayout:
    """Where each array of a SampleBatch lies in a flat buffer; equal at both ends of a stream."""

    spec: EnvSpec
    num_steps: int
    num_envs: int
    memory_size: int = 0
    chunk_length: int = 1

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Return the shape and dtype of every array that is there."""
        spec, t, e, n = self.spec, self.num_steps, self.num_envs, self.spec.num_agents
        action: tuple[tuple[int, ...], type[np.generic]] = ((t, e, n), np.int32)
        if spec.is_continuous:
            action = ((t, e, n, spec.action_size), np.float32)
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "observation": ((t + 1, e, n, spec.observation_size), spec.observation_dtype),
            "alive": ((t + 1, e, n), np.bool_),
            "is_first": ((t + 1, e), np.bool_),
            "action": action,
            "log_prob": ((t, e, n), np.float32),
            "reward": ((t, e, n), np.float32),
            "terminated": ((t, e, n), np.bool_),
            "truncated": ((t, e, n), np.bool_),
            "policy_version": ((t,), np.int64),
        }
        if spec.state_size:
            shapes["state"] = ((t + 1, e, spec.state_size), np.float32)
        if spec.has_action_mask:
            shapes["action_mask"] = ((t + 1, e, n, spec.num_actions), np.bool_)
        if self.memory_size:
            shapes["memory"] = ((t // self.chunk_length, e, n, self.memory_size), np.float32)
        return shapes

    @property
    def nbytes(self) -> int:
        """Size of the flat buffer in bytes."""
        return sum(_padded(shape, dtype) for shape, dtype in self.shapes().values())

    def view(self, buffer: Any) -> SampleBatch:
        """Return the batch whose arrays are views of `buffer`.

        Raises:
            ValueError: the buffer is not exactly `nbytes` long.
        """
        flat = np.frombuffer(buffer, np.uint8)
        if flat.nbytes != self.nbytes:
            raise ValueError(f"a buffer of {flat.nbytes} bytes cannot hold this layout's {self.nbytes} bytes")
        arrays: dict[str, Any] = {"state": None, "action_mask": None, "memory": None}
        offset = 0
        for name, (shape, dtype) in self.shapes().items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            arrays[name] = flat[offset : offset + size].view(dtype).reshape(shape)
            offset += _padded(shape, dtype)
        return SampleBatch(**arrays)

    def allocate(self) -> SampleBatch:
        """Return a zeroed batch with memory of its own."""
        return self.view(bytearray(self.nbytes))


def concatenate(batches: Sequence[SampleBatch]) -> SampleBatch:
    """Join batches of equal length along the environment axis.

    `policy_version` becomes the oldest version of each step over the batches.
    """
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Any] = {"state": None, "action_mask": None, "memory": None}
    for name in batches[0].arrays():
        parts = [getattr(batch, name) for batch in batches]
        joined[name] = np.minimum.reduce(parts) if name == "policy_version" else np.concatenate(parts, axis=1)
    return SampleBatch(**joined)


def _padded(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
