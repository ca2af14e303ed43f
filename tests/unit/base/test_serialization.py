from __future__ import annotations

import datetime
import math
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_marl.base.rpc_messages import (
    Reply,
    Request,
    RequestIds,
    SealedReply,
    SealedRequest,
    decode_kwargs,
    result_of,
)
from hpc_marl.base.serialization import decode, encode, number_dtype
from hpc_marl.errors import HpcMarlError, ProtocolError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


@given(PLAIN)
@settings(max_examples=40, deadline=None)
def test_plain_values_come_back(value: Any) -> None:
    assert decode(encode(value), Any) == value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (4, 0, 2), (1,) * 8])
def test_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(math.prod(shape)) % 2).astype(dtype).reshape(shape)
    embedded = decode(encode({"a": [array]}), dict[str, Any])["a"][0]
    assert embedded.dtype == array.dtype == number_dtype(array.dtype.str)
    np.testing.assert_array_equal(embedded, array)
    assert embedded.flags.writeable


def test_strange_layouts_arrive_in_order() -> None:
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    arrays = {
        "transposed": base.T,
        "strided": base[::2, ::3],
        "big": base.astype(">i4"),
        "reversed": base[::-1],
    }
    embedded = decode(encode(arrays), dict[str, Any])
    for name, array in arrays.items():
        np.testing.assert_array_equal(embedded[name], array)
    assert embedded["big"].dtype == np.dtype("<i4")


def test_numpy_scalars_become_plain() -> None:
    assert decode(encode([np.float32(0.5), np.int64(-3), np.bool_(True)]), list[Any]) == [0.5, -3, True]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        np.array([object()]),
        np.array(["text"]),
        np.zeros(3, dtype=[("a", "i4")]),
        np.zeros(2, dtype="c16"),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros((1,) * 9),
        2**70,
        lambda: None,
        ValueError("x"),
    ],
)
def test_what_may_not_travel_is_named(value: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot be sent"):
        encode({"value": value})


def test_a_cycle_is_an_error() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ProtocolError, match="cannot be sent"):
        encode(cycle)


@pytest.mark.parametrize(
    ("dtype", "shape", "content"),
    [
        ("<f4", [2], b"1234567"),
        ("<f4", [2], b"123456789"),
        ("<f4", [0], b"1234"),
        ("|O8", [1], b"12345678"),
        ("|V8", [1], b"12345678"),
        ("O", [1], b"12345678"),
        (">f4", [2], b"12345678"),
        ("<f4", [-2], b"12345678"),
        ("<f4", [2.0], b"12345678"),
        ("|b1", [1] * 9, b"1"),
        ("|b1", [2**62, 4], b"1"),
        ("|b1", [0] + [2**40] * 7, b""),
        (1, [1], b"1"),
    ],
)
def test_arrays_that_do_not_fit_their_layout_are_refused(
    dtype: Any, shape: list[Any], content: bytes
) -> None:
    array = msgspec.msgpack.Ext(1, msgspec.msgpack.encode([[dtype, shape], content]))
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode([array]), list[Any])


@pytest.mark.parametrize("code", ["O", "|V8", ">f4", "", "<c8", "<U1"])
def test_types_that_are_no_numbers_are_refused(code: str) -> None:
    with pytest.raises(ProtocolError, match="is not allowed"):
        number_dtype(code)


BOMBS = [
    b"",
    b"\xc1",
    b"\x91" * 200_000,
    b"\x81\xa1a" * 200_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x81\x90\x00",
    b"\x81\x80\x00",
    b"\xa4\xff\xfe\xfd\xfc",
    b"\xd6\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xd4\x05\x00",
    b"\xd4\x01\x00",
    b"\xc7\x00\x01",
    msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode([["|O8", [1]], b"12345678"]))),
    b"\x00\x00",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("expected", [dict[str, Any], Request, Reply, int])
def test_bombs_are_refused(bomb: bytes, expected: type[Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(bomb, expected)


def test_unknown_fields_are_refused() -> None:
    request = msgspec.msgpack.decode(a_request())
    assert decode(a_request(), Request).command == "foo"
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode([*request, "more"]), Request)
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(["x" * 65, *request[1:]]), Request)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    assert_only_protocol_errors(data)


def test_mutants_of_good_messages_decode_or_are_refused() -> None:
    random_numbers = random.Random(2026)
    seeds = [
        a_request(),
        a_reply(),
        msgspec.msgpack.encode({"t": datetime.datetime.now(datetime.timezone.utc)}),
    ]
    refused = 0
    for _ in range(6000):
        mutant = mutate(random_numbers.choice(seeds), random_numbers)
        refused += assert_only_protocol_errors(mutant)
    assert refused > 6000


def a_request() -> bytes:
    kwargs = {
        "x": [1, 2.5, None, True, "a", b"b"],
        "array": np.arange(6, dtype=np.float32),
        "d": {"e": {"f": -5}},
    }
    return encode(Request(RequestIds().client, 3, "foo", 1000, "", kwargs))


def a_reply() -> bytes:
    return encode(Reply(RequestIds().client, 3, None, ({"a": np.zeros((2, 2)), "l": [1, "é"]})))


def mutate(message: bytes, random_numbers: random.Random) -> bytes:
    mutant = bytearray(message)
    for _ in range(random_numbers.randint(1, 5)):
        at = random_numbers.randrange(len(mutant)) if mutant else 0
        kind = random_numbers.random()
        if kind < 0.4 and mutant:
            mutant[at] ^= 1 << random_numbers.randrange(8)
        elif kind < 0.6 and mutant:
            mutant[at] = random_numbers.choice(
                b"\x00\x80\x90\xc0\xc1\xc4\xc7\xc9\xd4\xd8\xdb\xdd\xdf\xff\xcf\x81"
            )
        elif kind < 0.75:
            del mutant[at:]
        elif kind < 0.9:
            mutant[at:at] = random_numbers.randbytes(random_numbers.randint(1, 8))
        else:
            mutant[at:at] = mutant[at : at + 30]
    return bytes(mutant)


def assert_only_protocol_errors(data: bytes) -> int:
    """Decode `data` in every way; return how often it was refused. Any other exception fails the test."""
    refused = 0
    for expected in (Any, dict[str, Any], Request, SealedRequest, Reply, SealedReply):
        try:
            message = decode(data, expected)
            if isinstance(message, SealedRequest):
                decode_kwargs(message)
        except ProtocolError:
            refused += 1
        else:
            if isinstance(message, SealedReply):
                try:
                    result_of(message)
                except HpcMarlError:
                    refused += 1
    return refused
