"""Bytes to values and back: msgpack by msgspec, numpy arrays inside it, no pickle anywhere.

`encode`/`decode` carry control messages: plain values (None, bool, int of 64 bits, float, str, bytes, list,
dict), msgspec Structs, and small numpy arrays inside them; tuples arrive as lists. Bulk arrays travel beside them, as
raw bytes of a layout that both ends know (`streams`).

Whatever the bytes, decoding ends with a value of the expected type or with `ProtocolError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, cast

import msgspec

from hpc_marl.errors import ProtocolError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
Buffer: TypeAlias = "bytes | bytearray | memoryview"

_ARRAY_EXTENSION = 1
_MAX_DIMENSIONS = 8
# Neither objects (O), records (V), texts (S, U) nor times: numbers only, little-endian; as `dtype.str` says them.
_DTYPE_CODES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
# What msgspec and the hooks below are known to raise on hostile bytes: wrong types, deep nesting, unhashable
# keys, years out of range, bad UTF-8.
_DECODING_ERRORS = (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError, MemoryError)

_Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
_Shape = Annotated[tuple[_Dimension, ...], msgspec.Meta(max_length=_MAX_DIMENSIONS)]
_DtypeCode = Annotated[str, msgspec.Meta(max_length=4)]


class _ArrayLayout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """dtype and shape of one array."""

    dtype: _DtypeCode
    shape: _Shape


class _EmbeddedArray(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array inside a message; `content` is in C order."""

    layout: _ArrayLayout
    content: bytes


def encode(value: Any) -> bytes:
    """Return `value` as msgpack.

    >>> import numpy as np
    >>> decode(encode({"x": 42, "a": np.arange(3)}), dict[str, Any])
    {'x': 42, 'a': array([0, 1, 2])}

    Raises:
        ProtocolError: it holds something that may not travel, such as an arbitrary object.
    """
    try:
        return _encode(value)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"a {type(value).__name__} cannot be sent: {error}") from error


def decode(data: Buffer, expected: type[T]) -> T:
    """Return the value in `data`, validated as `expected` (a Struct, `dict[str, Any]`, `int`, ...).

    Arrays are copies of their own and can be written to.

    Raises:
        ProtocolError: `data` is not exactly one such value.
    """
    return decoder(expected)(data)


def decoder(expected: type[T]) -> Callable[[Buffer], T]:
    """Return `decode` for values of one type, for those who decode many."""
    made: Callable[[Buffer], T] = _decoder(cast(Any, expected))
    return made


@lru_cache(maxsize=256)
def _decoder(expected: Any) -> Callable[[Buffer], Any]:
    decode_one = msgspec.msgpack.Decoder(expected, ext_hook=_decode_extension).decode

    def decode_expected(data: Buffer) -> Any:
        try:
            return decode_one(data)
        except _DECODING_ERRORS as error:
            raise ProtocolError(f"not a {getattr(expected, '__name__', expected)}: {error}") from error

    return decode_expected


def number_dtype(code: str) -> np.dtype[Any]:
    """Return the dtype that came over the wire as `code`.

    >>> number_dtype("<f4")
    dtype('float32')

    Raises:
        ProtocolError: it is not one of numbers.
    """
    import numpy as np

    if code not in _DTYPE_CODES:
        raise ProtocolError(f"dtype {code!r} is not allowed; expected one of {' '.join(_DTYPE_CODES)}")
    return np.dtype(code)


def _sendable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import numpy as np

    dtype = array.dtype.newbyteorder("<")
    if dtype.str not in _DTYPE_CODES or array.ndim > _MAX_DIMENSIONS:
        raise ProtocolError(
            f"an array of dtype {array.dtype} with {array.ndim} dimensions cannot be sent; "
            f"expected at most {_MAX_DIMENSIONS} dimensions and one of {' '.join(_DTYPE_CODES)}"
        )
    return np.asarray(array, dtype=dtype, order="C")


def _array_view(layout: _ArrayLayout, content: Any) -> npt.NDArray[Any]:
    import numpy as np

    dtype = number_dtype(layout.dtype)
    view = memoryview(content)
    num_bytes = math.prod(layout.shape) * dtype.itemsize
    if view.nbytes != num_bytes:
        raise ProtocolError(
            f"{view.nbytes} bytes for {layout.dtype}{list(layout.shape)}; expected {num_bytes}"
        )
    try:
        array = np.frombuffer(view, dtype=dtype) if num_bytes else np.empty(0, dtype=dtype)
        array = array.reshape(layout.shape)
    except ValueError as error:  # An empty array whose other dimensions multiply beyond the address space.
        raise ProtocolError(f"shape {list(layout.shape)} is impossible: {error}") from error
    array.flags.writeable = False
    return array


def _encode_numpy(value: Any) -> Any:
    # Processes that send no arrays never load numpy, which would take a third of their start.
    import numpy as np

    if isinstance(value, np.ndarray):
        array = _sendable(value)
        embedded = _EmbeddedArray(_ArrayLayout(array.dtype.str, array.shape), array.tobytes())
        return msgspec.msgpack.Ext(_ARRAY_EXTENSION, msgspec.msgpack.encode(embedded))
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    raise TypeError(
        f"{type(value).__module__}.{type(value).__qualname__} is neither a plain value nor a numeric array"
    )


_encode = msgspec.msgpack.Encoder(enc_hook=_encode_numpy).encode


def _decode_extension(code: int, content: memoryview) -> Any:
    if code != _ARRAY_EXTENSION:
        raise ProtocolError(f"extension type {code}; expected {_ARRAY_EXTENSION} (an array)")
    embedded = decode(content, _EmbeddedArray)
    return _array_view(embedded.layout, embedded.content).copy()
