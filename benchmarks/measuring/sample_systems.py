"""Ways to bring sample batches from one process to another: hpc_marl's, and those it is compared with.

Every producer writes the arrays of each batch first, as an actor must, and every consumer ends with arrays it can read.
No way copies more than its design needs, each has the same number of slots or of messages under way, and who has to
wait sleeps.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zmq

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import load_keyring
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.streams.samples import SampleMetadata, SampleReceiver, SampleSender, Transport

try:
    import faster_fifo
except ImportError:  # a peer that need not be installed
    faster_fifo = None

_KEY = "benchmark/samples/sample_stream/trainer/0"
_RAW_KEY = "benchmark/samples/raw"
_WAIT_S = 0.2
_MAX_MESSAGE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Setting:
    """What both ends know before they start; plain values, since it travels to new processes."""

    directory: Path
    layout: SampleLayout
    num_slots: int
    queues: tuple[Any, Any] | None = None
    """Of faster-fifo: full and free slots."""

    def open_context(self) -> RunContext:
        """Return a context of the run in `directory`, for this process."""
        keyring = load_keyring(self.directory / "auth")
        sockets = SocketFactory(keyring, max_message_bytes=_MAX_MESSAGE_BYTES)
        return RunContext("benchmark", "samples", FileNameResolver(self.directory / "names"), sockets)


class Producer(Protocol):
    """The sending end."""

    def send(self, source: SampleBatch) -> None:
        """Write a batch with the contents of `source` and send it; wait while there is no room."""

    def close(self) -> None:
        """Let go of everything."""


class Consumer(Protocol):
    """The receiving end."""

    def batches(self) -> Iterator[SampleBatch]:
        """Wait for the next batches and yield each; one is released when the next is asked for, or soon after."""

    def close(self) -> None:
        """Let go of everything."""


class Writer:
    """Fills batches as an environment would, array by array; the arrays of a slot are looked up once."""

    def __init__(self) -> None:
        self._pairs: dict[int, list[tuple[Any, Any]]] = {}

    def write(self, batch: SampleBatch, source: SampleBatch) -> None:
        """Copy the contents of `source`, which is the same in every call, to one of few batches."""
        pairs = self._pairs.get(id(batch))
        if pairs is None:
            pairs = list(zip(batch.arrays().values(), source.arrays().values(), strict=True))
            self._pairs[id(batch)] = pairs
        for array, values in pairs:
            array[...] = values


class _OurProducer:
    def __init__(self, setting: Setting, transport: Transport) -> None:
        self._context, self._writer = setting.open_context(), Writer()
        layout = setting.layout
        self._sender = SampleSender(
            self._context, _KEY, "actor/0", layout, setting.num_slots, transport=transport
        )
        steps = layout.num_steps * layout.num_envs
        self._metadata = SampleMetadata(
            env_steps=steps, agent_steps=steps, episodes=[(20.0, 20)] * layout.num_envs
        )

    def send(self, source: SampleBatch) -> None:
        sender = self._sender
        sender.poll()
        while (batch := sender.acquire()) is None:
            sender.poll(_WAIT_S)
        self._writer.write(batch, source)
        sender.commit(batch, self._metadata)

    def close(self) -> None:
        self._sender.close()
        self._context.close()


class _OurConsumer:
    def __init__(self, setting: Setting, transport: Transport) -> None:
        self._context = setting.open_context()
        budget = setting.num_slots * setting.layout.nbytes
        self._receiver = SampleReceiver(self._context, _KEY, max_bytes=budget, transport=transport)

    def batches(self) -> Iterator[SampleBatch]:
        self._receiver.poll(_WAIT_S)
        taken = self._receiver.take()
        for received in taken:
            yield received.batch
        self._receiver.consume(taken)

    def close(self) -> None:
        self._receiver.ledger.check()
        self._receiver.close()
        self._context.close()


class _PickleProducer:
    """The arrays of a batch pickled into one message, over a Unix socket."""

    def __init__(self, setting: Setting) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.SNDHWM, max(setting.num_slots // 2, 1))
        self._socket.connect(f"ipc://{setting.directory}/pickle")
        self._batch, self._writer = setting.layout.allocate(), Writer()

    def send(self, source: SampleBatch) -> None:
        self._writer.write(self._batch, source)
        self._socket.send(pickle.dumps(self._batch.arrays(), protocol=5))

    def close(self) -> None:
        self._context.destroy(linger=1000)


class _PickleConsumer:
    def __init__(self, setting: Setting) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, max(setting.num_slots // 2, 1))
        self._socket.bind(f"ipc://{setting.directory}/pickle")

    def batches(self) -> Iterator[SampleBatch]:
        arrays = pickle.loads(self._socket.recv())  # noqa: S301  this is what peers do
        yield SampleBatch(**{"state": None, "action_mask": None, "memory": None, **arrays})

    def close(self) -> None:
        self._context.destroy(linger=0)


class _RawProducer:
    """The bytes of a batch as one message under CURVE, and nothing else: no credit, no count, no answer."""

    def __init__(self, setting: Setting) -> None:
        self._context = setting.open_context()
        while not isinstance(record := self._context.lookup(_RAW_KEY), ServiceRecord):
            pass
        options = {zmq.SNDHWM: max(setting.num_slots // 2, 1)}
        address = record.addresses_for("")
        self._socket = self._context.sockets.connect(
            zmq.PUSH, address, record.port, record.public_key, options=options
        )
        self._flat = [np.zeros(setting.layout.nbytes, np.uint8) for _ in range(setting.num_slots)]
        self._batches = [setting.layout.view(flat) for flat in self._flat]
        self._next, self._writer = 0, Writer()

    def send(self, source: SampleBatch) -> None:
        at = self._next = (self._next + 1) % len(self._flat)
        self._writer.write(self._batches[at], source)
        self._socket.send(self._flat[at].data, copy=self._flat[at].nbytes < 2**18)

    def close(self) -> None:
        self._context.close()


class _RawConsumer:
    def __init__(self, setting: Setting) -> None:
        self._context = setting.open_context()
        options = {zmq.RCVHWM: max(setting.num_slots // 2, 1)}
        bound = self._context.sockets.bind(zmq.PULL, ["127.0.0.1"], options=options)
        self._context.publish(_RAW_KEY, bound)
        self._socket, self._layout = bound.socket, setting.layout

    def batches(self) -> Iterator[SampleBatch]:
        yield self._layout.view(self._socket.recv(copy=False).buffer)

    def close(self) -> None:
        self._context.close()


class _FifoProducer:
    """Sample Factory's design: slots in shared memory, their indices through a queue in shared memory."""

    def __init__(self, setting: Setting) -> None:
        size = setting.num_slots * setting.layout.nbytes
        self._memory = SharedMemory.create(size, "benchmark slots")
        self._batches = _slots(setting, self._memory)
        assert setting.queues is not None
        self._full, self._free = setting.queues
        self._full.put(_as_plain(self._memory.handle()))
        self._indices, self._writer = list(range(setting.num_slots)), Writer()

    def send(self, source: SampleBatch) -> None:
        while not self._indices:
            self._indices = self._free.get_many()
        index = self._indices.pop()
        self._writer.write(self._batches[index], source)
        self._full.put(index)

    def close(self) -> None:
        self._memory.close()


class _FifoConsumer:
    def __init__(self, setting: Setting) -> None:
        assert setting.queues is not None
        self._full, self._free = setting.queues
        self._setting = setting
        self._memory: SharedMemory | None = None
        self._batches: list[SampleBatch] = []

    def batches(self) -> Iterator[SampleBatch]:
        if self._memory is None:
            self._memory = SharedMemory.attach(SharedMemoryHandle(*self._full.get(timeout=30.0)))
            self._batches = _slots(self._setting, self._memory)
        indices = self._full.get_many()
        for index in indices:
            yield self._batches[index]
        self._free.put_many(indices)

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()


def _slots(setting: Setting, memory: SharedMemory) -> list[SampleBatch]:
    size = setting.layout.nbytes
    parts = (memory.buffer[slot * size : (slot + 1) * size] for slot in range(setting.num_slots))
    return [setting.layout.view(part) for part in parts]


def _as_plain(handle: SharedMemoryHandle) -> tuple[Any, ...]:
    return handle.pid, handle.fd, handle.size, handle.start_ticks, handle.token


SYSTEMS: dict[str, tuple[Callable[[Setting], Producer], Callable[[Setting], Consumer]]] = {
    "hpc_marl, shared memory": (lambda s: _OurProducer(s, "auto"), lambda s: _OurConsumer(s, "auto")),
    "hpc_marl, zmq under CURVE": (lambda s: _OurProducer(s, "zmq"), lambda s: _OurConsumer(s, "zmq")),
    "zmq ipc + pickle": (_PickleProducer, _PickleConsumer),
    "raw zmq PUSH/PULL under CURVE": (_RawProducer, _RawConsumer),
    **({"slots + faster-fifo": (_FifoProducer, _FifoConsumer)} if faster_fifo is not None else {}),
}
"""Ends of every way, by name."""


def new_queues() -> tuple[Any, Any] | None:
    """Return the queues of the faster-fifo peer, None where it is not installed."""
    return None if faster_fifo is None else (faster_fifo.Queue(100_000), faster_fifo.Queue(100_000))
