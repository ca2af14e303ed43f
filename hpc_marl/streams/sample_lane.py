"""SampleLane: the words in shared memory by which one sender and one receiver speak of batches in shared slots.

    sender writes      committed | heard, limit | waits     record of batch s at s % num_slots: slot, before, metadata
    receiver writes    news | number, grant | waits         stamp of each slot: number of the batch released, plus 1

Each word has one writer and is written whole, after what it speaks of, in order. So neither end ever waits for the
other or reads what is half written, and whenever one of them is killed the lane says exactly what was done. A record
is not written again before the receiver has read it: a sender has at most `num_slots` batches under way.

A lane serves one sender and one receiver. For a successor the sender makes a new one: whoever still holds the old one,
a stopped trainer that was replaced and wakes up, sees no more batches there, and nobody hears what it releases.

Whoever waits says so in its word before it looks for the last time, and the other looks at that word after it has
written, with fences in between: the bell is rung where it is needed, and only there. The word is another for every
time of waiting, so that the bell is rung once for each, however much is written before the sleeper has woken up.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import msgspec

from hpc_marl.base import serialization
from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle, fence, keep_order
from hpc_marl.data import SampleLayout
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.ledger import Tally
from hpc_marl.streams.sample_credits import NO_GRANT, Grant
from hpc_marl.streams.sample_messages import SampleMetadata

_LINE_WORDS = 8  # a cache line of 64 bytes: words of different writers do not share one
_COMMITTED, _TOLD, _SENDER_WAITS = 0, 1, 2
_NEWS, _GRANT, _RECEIVER_WAITS = 8, 9, 10
_STAMPS = 16
_LOW_BITS = 20  # of a pair in one word: a number of batches, above it the number of a grant
_LOW_MASK = 2**_LOW_BITS - 1
_RECORD = struct.Struct("<qqqq")  # slot, env_steps and agent_steps before, bytes of metadata
_HEAD_BYTES = _RECORD.size
_METADATA_BYTES = 256
_EPISODE_BYTES = 20  # of one (float, int) as msgpack, at most
_encode = msgspec.msgpack.Encoder().encode
_decode = serialization.decoder(SampleMetadata)


class Record(msgspec.Struct, frozen=True):
    """One batch as its sender announced it."""

    seq: int
    slot: int
    before: Tally
    metadata: SampleMetadata


class SampleLane:
    """One lane; see the module's text. The methods of each end are for that end only."""

    def __init__(self, layout: SampleLayout, num_slots: int, memory: SharedMemory) -> None:
        """Use `create` or `attach`."""
        self._memory = memory
        self._num_slots = num_slots
        self._record_bytes = _record_bytes(layout)
        start = _records_start(num_slots)
        self._words = memory.buffer[:start].cast("Q")
        self._records = memory.buffer[start:]
        self.stamps = self._words[_STAMPS : _STAMPS + num_slots]
        """By slot: number of the batch that was released there last, plus 1; see `release`."""
        self._grant_word, self._grant = 0, NO_GRANT
        self._rung = 0
        self._waits = (
            time.monotonic_ns()
        )  # no two ends that ever wait at this lane begin with the same number

    @classmethod
    def create(cls, layout: SampleLayout, num_slots: int, committed: int, label: str) -> SampleLane:
        """Return a lane for batches from number `committed` on.

        Raises:
            StreamError: the kernel grants no memory.
        """
        lane = cls(layout, num_slots, SharedMemory.create(_size(layout, num_slots), label))
        lane._words[_COMMITTED] = committed
        return lane

    @classmethod
    def attach(cls, layout: SampleLayout, num_slots: int, handle: SharedMemoryHandle) -> SampleLane:
        """Return a sender's lane.

        Raises:
            StreamError: it is out of reach, or its size is not that of the layout.
        """
        if handle.size != _size(layout, num_slots):
            raise StreamError(f"a lane of {handle.size} bytes where {_size(layout, num_slots)} are needed")
        return cls(layout, num_slots, SharedMemory.attach(handle))

    @property
    def handle(self) -> SharedMemoryHandle:
        """What the receiver needs to attach."""
        return self._memory.handle()

    def close(self) -> None:
        """Let go of the memory."""
        self.stamps.release()
        self._words.release()
        self._records.release()
        self._memory.close()

    # ---- the sender's end

    def check_fits(self, metadata: SampleMetadata) -> bytes:
        """Return the metadata as it is written.

        Raises:
            StreamError: it tells of more episodes than there can be in a batch.
        """
        encoded = _encode(metadata)
        room = self._record_bytes - _HEAD_BYTES
        if len(encoded) > room:
            raise StreamError(
                f"the metadata of a batch takes {len(encoded)} bytes of {room}: {len(metadata.episodes)} episodes"
            )
        return encoded

    def commit(self, slot: int, before: Tally, metadata: bytes) -> None:
        """Announce the batch in `slot`; `before.batches` is its number."""
        seq, size = before.batches, len(metadata)
        start = seq % self._num_slots * self._record_bytes
        _RECORD.pack_into(self._records, start, slot, before.env_steps, before.agent_steps, size)
        start += _HEAD_BYTES
        self._records[start : start + size] = metadata
        keep_order()
        self._words[_COMMITTED] = seq + 1

    def tell(self, heard: int, limit: int) -> None:
        """Say which grant was heard of, and the most batches that will be under way."""
        self._words[_TOLD] = heard << _LOW_BITS | limit

    @property
    def news(self) -> int:
        """Grows with everything that the receiver writes; `keep_order` before reading what."""
        return self._words[_NEWS]

    def grant(self) -> Grant:
        """Return the present grant."""
        word = self._words[_GRANT]
        if word != self._grant_word:
            self._grant_word, self._grant = word, Grant(word >> _LOW_BITS, word & _LOW_MASK)
        return self._grant

    def set_sender_waits(self, waits: bool) -> None:
        """Ask for a ring at the next news."""
        self._set_waits(_SENDER_WAITS, waits)
        fence()

    def receiver_waits(self) -> bool:
        """Return whether the receiver needs a ring for what was just written; True once for every time it waits."""
        fence()
        waits = self._words[_RECEIVER_WAITS]
        return bool(waits) and self._is_first_ring(waits)

    # ---- the receiver's end

    def sender_state(self) -> tuple[int, int]:
        """Return what changes whenever the sender has written something: looked at often."""
        words = self._words
        return words[_COMMITTED], words[_TOLD]

    def records(self, first: int, committed: int) -> Iterator[Record]:
        """Read the records of batches `first` to `committed` (exclusive).

        Raises:
            ProtocolError: it makes no sense.
        """
        if not first <= committed <= first + self._num_slots:
            raise ProtocolError(f"{committed} batches committed where {first} were known")
        records = self._records
        for seq in range(first, committed):
            start = seq % self._num_slots * self._record_bytes
            slot, env_steps, agent_steps, size = _RECORD.unpack_from(records, start)
            if not (0 <= slot < self._num_slots and 0 <= size <= self._record_bytes - _HEAD_BYTES):
                raise ProtocolError(f"a record of slot {slot} with {size} bytes")
            start += _HEAD_BYTES
            metadata = _decode(records[start : start + size])
            yield Record(seq, slot, Tally(seq, env_steps, agent_steps), metadata)

    def told(self) -> tuple[int, int]:
        """Return the number of the grant that the sender has heard of, and its limit."""
        word = self._words[_TOLD]
        return word >> _LOW_BITS, word & _LOW_MASK

    def release(self, slot: int, seq: int) -> None:
        """Give a slot back; `publish_news` follows."""
        self.stamps[slot] = seq + 1

    def give(self, grant: Grant) -> None:
        """Write the sender's grant; `publish_news` follows."""
        self._words[_GRANT] = grant.number << _LOW_BITS | grant.batches

    def publish_news(self) -> bool:
        """Make what was written known; return whether the sender needs a ring, once for every time it waits."""
        keep_order()
        self._words[_NEWS] += 1
        fence()
        waits = self._words[_SENDER_WAITS]
        return bool(waits) and self._is_first_ring(waits)

    def set_receiver_waits(self, waits: bool) -> None:
        """Ask for a ring at the next batch; `fence` before looking for one."""
        self._set_waits(_RECEIVER_WAITS, waits)

    # ---- both

    def _set_waits(self, word: int, waits: bool) -> None:
        self._waits += waits
        self._words[word] = self._waits if waits else 0

    def _is_first_ring(self, waits: int) -> bool:
        is_first = waits != self._rung
        self._rung = waits
        return is_first


def _record_bytes(layout: SampleLayout) -> int:
    # No more episodes can end in a batch than it has steps. Pages are taken once they are written.
    return _HEAD_BYTES + _METADATA_BYTES + _EPISODE_BYTES * layout.num_steps * layout.num_envs


def _records_start(num_slots: int) -> int:
    return 8 * (_STAMPS + -(-num_slots // _LINE_WORDS) * _LINE_WORDS)


def _size(layout: SampleLayout, num_slots: int) -> int:
    return _records_start(num_slots) + num_slots * _record_bytes(layout)
