"""What one inference request and its answer look like: agreed once, so that a message is numbers and nothing else.

    request   observation, action_mask, memory, noise       reply   action, log_prob, memory

All arrays of one direction lie one after another in one buffer: a slot of shared memory, or one frame of a message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hpc_marl.base import serialization
from hpc_marl.data import EnvSpec
from hpc_marl.errors import ProtocolError, StreamError

_ALIGNMENT = 64  # bytes; a cache line
_MAX_FIELDS = 64

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class ArrayField(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One array; its first dimension is E."""

    name: _Name
    dtype: Annotated[str, msgspec.Meta(max_length=4)]
    """As numpy writes it: `<f4`."""
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(min_length=1, max_length=8)]


_Fields = Annotated[tuple[ArrayField, ...], msgspec.Meta(min_length=1, max_length=_MAX_FIELDS)]


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    request: _Fields
    reply: _Fields


class PackedArrays:
    """Where each array of one direction lies in a flat buffer.

    Raises:
        ProtocolError: a name comes twice, or a dtype may not travel.
    """

    def __init__(self, fields: Sequence[ArrayField]) -> None:
        self._places: list[tuple[str, np.dtype[Any], tuple[int, ...], int, int]] = []
        start = 0
        for field in fields:
            dtype = serialization.number_dtype(field.dtype)
            stop = start + math.prod(field.shape) * dtype.itemsize
            self._places.append((field.name, dtype, field.shape, start, stop))
            start = -(-stop // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = start
        """Of the buffer."""
        self.types = {name: (dtype, shape) for name, dtype, shape, *_ in self._places}
        """dtype and shape of every array."""
        if len(self.types) != len(fields):
            raise ProtocolError("two arrays have the same name")

    def views(self, buffer: memoryview) -> dict[str, NDArray[Any]]:
        """Return the arrays as views of a buffer of `nbytes`."""
        # Unlike `np.ndarray`, `frombuffer` keeps the buffer from being let go of: of slots that would be a crash.
        return {
            name: np.frombuffer(buffer, dtype, math.prod(shape), start).reshape(shape)
            for name, dtype, shape, start, _ in self._places
        }

    def parts(self, arrays: Mapping[str, NDArray[Any]], place: slice) -> list[bytes]:
        """Return one group's part of the arrays of a batch in pieces, which make up the flat buffer.

        Args:
            arrays: of the whole batch; checked before.
            place: the group's environments in it.
        """
        return [
            arrays[name][place].tobytes().ljust(-(-(stop - start) // _ALIGNMENT) * _ALIGNMENT, b"\0")
            for name, _, _, start, stop in self._places
        ]

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raise StreamError where arrays are not exactly these."""
        types = self.types
        for name, array in arrays.items():
            dtype, shape = types.get(name, (None, None))
            if array.shape != shape or array.dtype != dtype:
                agreed = ", ".join(f"{known} {dtype}{list(shape)}" for known, (dtype, shape) in types.items())
                raise StreamError(f"{name} is {array.dtype}{list(array.shape)}; agreed were {agreed}")
        if len(arrays) != len(types):
            raise StreamError(f"arrays {', '.join(arrays)}; agreed were {', '.join(types)}")

    def check_batch(self, arrays: Mapping[str, NDArray[Any]], num_envs: int) -> None:
        """Raise StreamError where arrays are not these with `num_envs` environments of several groups together."""
        for name, (dtype, shape) in self.types.items():
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != (num_envs, *shape[1:]):
                found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise StreamError(f"{name} is {found}; agreed was {dtype}{[num_envs, *shape[1:]]}")


class InferenceLayout:
    """Both directions of one environment group.

    Args:
        request: `observation` [E, N, ...] and what else the policy needs.
        reply: what it answers.

    Raises:
        ProtocolError: the fields are no possible layout.

    Attributes:
        num_envs: E.
        rows: E * N agent rows.
        encoded: the layout as it travels.
    """

    def __init__(self, request: Sequence[ArrayField], reply: Sequence[ArrayField]) -> None:
        self.request, self.reply = PackedArrays(request), PackedArrays(reply)
        _, seen = self.request.types.get("observation", (None, ()))
        if len(seen) < 2:
            raise ProtocolError("a request without observation [E, N, ...]")
        self.num_envs, self.rows = seen[0], seen[0] * seen[1]
        for field in (*request, *reply):
            if field.shape[0] != self.num_envs:
                raise ProtocolError(
                    f"{field.name} is {list(field.shape)}; expected {self.num_envs} environments, as in observation"
                )
        self.encoded = serialization.encode(_Wire(tuple(request), tuple(reply)))


@lru_cache(maxsize=256)
def decode_layout(encoded: bytes) -> InferenceLayout:
    """Return the layout that travelled as these bytes; the same object for the same bytes.

    Raises:
        ProtocolError: they are none.
    """
    wire = serialization.decode(encoded, _Wire)
    return InferenceLayout(wire.request, wire.reply)


def policy_layout(spec: EnvSpec, num_envs: int, memory_size: int = 0) -> InferenceLayout:
    """Return the layout of a group of `num_envs` environments.

    Args:
        spec: of the environment.
        num_envs: E.
        memory_size: H of recurrent memory, 0 without.
    """
    each = (num_envs, spec.num_agents)

    def field(name: str, dtype: Any, *trailing: int) -> ArrayField:
        return ArrayField(name, np.dtype(dtype).str, (*each, *trailing))

    memory = [field("memory", np.float32, memory_size)] if memory_size else []
    mask = [field("action_mask", np.bool_, spec.num_actions)] if spec.has_action_mask else []
    action = (
        field("action", np.float32, spec.action_size) if spec.is_continuous else field("action", np.int32)
    )
    return InferenceLayout(
        [
            field("observation", spec.observation_dtype, spec.observation_size),
            field("noise", np.float32, spec.noise_size),
            *mask,
            *memory,
        ],
        [action, field("log_prob", np.float32), *memory],
    )
