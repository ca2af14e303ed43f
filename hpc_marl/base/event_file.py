"""TensorBoard's event files: a protocol buffer `Event` a record, framed as TFRecord.

    length (8 bytes) | its checksum | content | its checksum

Written by hand: of the messages that TensorBoard knows three are needed, and a package for all of them takes longer to
import than a short training takes to learn, beside the thread that learns.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), reflected


def version_event(wall_time: float) -> bytes:
    """Return the first event of a file."""
    return _double(1, wall_time) + _text(3, "brain.Event:2")


def start_event(wall_time: float, step: int) -> bytes:
    """Return the event of a new start: TensorBoard hides what was written before beyond `step`."""
    session_log = _key(1, 0) + _varint(1)  # status: START
    return _head(wall_time, step) + _message(7, session_log)


def values_event(wall_time: float, step: int, values: Iterable[tuple[str, float]]) -> bytes:
    """Return the event of numbers by tag at one step."""
    summary = b"".join(_message(1, _text(1, tag) + _float(2, value)) for tag, value in values)
    return _head(wall_time, step) + _message(5, summary)


def framed(content: bytes) -> bytes:
    """Return one record of a file."""
    length = struct.pack("<Q", len(content))
    return b"".join((length, _checksum(length), content, _checksum(content)))


def _head(wall_time: float, step: int) -> bytes:
    return _double(1, wall_time) + (_key(2, 0) + _varint(step) if step else b"")


def _key(field: int, wire_type: int) -> bytes:
    return bytes((field << 3 | wire_type,))


def _varint(number: int) -> bytes:
    number &= 0xFFFF_FFFF_FFFF_FFFF
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _double(field: int, number: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", number)


def _float(field: int, number: float) -> bytes:
    try:
        return _key(field, 5) + struct.pack("<f", number)
    except OverflowError:  # beyond what a float32 holds
        return _key(field, 5) + struct.pack("<f", float("inf") if number > 0 else float("-inf"))


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _remainders() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)  # noqa: PLW2901
        found.append(byte)
    return tuple(found)


_REMAINDERS = _remainders()


def _checksum(content: bytes) -> bytes:
    """Return the masked CRC-32C of some bytes, as it stands in the file."""
    crc, remainders = 0xFFFFFFFF, _REMAINDERS
    for byte in content:
        crc = remainders[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
    return struct.pack("<I", masked)
