"""ParameterPublisher: the trainer's end of the parameter stream; see `hpc_marl.streams.parameters`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from hpc_marl.base import serialization
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.socket_shortcuts import can_receive
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.frames import in_frames
from hpc_marl.streams.links import Transport
from hpc_marl.streams.parameter_memory import FlatParameters, ParameterLayout, ParameterMemory, Shapes
from hpc_marl.streams.parameter_messages import ParameterOffer, Version, Want

_MAX_REMEMBERED = 2**16

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublisherStatistics:
    """What a publisher did so far."""

    published: int
    answered: int
    """Versions sent to readers of other nodes."""
    waiting_readers: int
    malformed: int


class ParameterPublisher:
    """Publishes the versions of one trainer; see `hpc_marl.streams.parameters`.

    `publish` and `close` are for one thread.

    Args:
        context: of this process.
        key: name to publish under.
        shapes: of the weights, in the order that all readers see them.
        metadata: plain values that readers need before they can use the weights.
        transport: auto shares memory on this node; zmq answers everyone by ZMQ.
        epoch: the trainer's right to publish.
    """

    def __init__(
        self,
        context: RunContext,
        key: str,
        shapes: Shapes,
        *,
        metadata: Mapping[str, Any] | None = None,
        transport: Transport = "auto",
        epoch: int = 0,
    ) -> None:
        layout = ParameterLayout(shapes)
        self._memory = ParameterMemory.create(layout, f"hpc_marl parameters {key}")
        self._answering = _AnsweringThread(context, self._memory)
        unfinished = contextlib.ExitStack()
        unfinished.callback(self.close)
        offer = ParameterOffer(
            epoch=epoch,
            shapes=layout.shapes,
            metadata=dict(metadata or {}),
            shared_memory=self._memory.handle if transport == "auto" else None,
        )
        with unfinished:
            context.publish(key, self._answering.bound, extra=msgspec.to_builtins(offer))
            unfinished.pop_all()

    def publish(self, policy_version: int, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Make this the newest version; copies the weights, never waits.

        Raises:
            StreamError: a name, shape or dtype is not as announced, or the stream is closed.
        """
        self._answering.require_alive()
        self._memory.write(policy_version, weights)
        self._answering.notify()

    def statistics(self) -> PublisherStatistics:
        """Return counters."""
        return PublisherStatistics(
            published=self._memory.generation,
            answered=self._answering.answered,
            waiting_readers=len(self._answering.waiting),
            malformed=self._answering.malformed,
        )

    def close(self) -> None:
        """Stop publishing; readers keep what they have."""
        if self._answering.is_closed:
            return
        self._memory.mark_closed()
        self._answering.close()
        self._memory.close()


class _AnsweringThread:
    """Answers the readers of other nodes from the newest version in memory.

    A question is answered once per connection, however often it is asked: where many readers share a slow network, an
    answer may take longer than its reader has patience. It arrives, or its connection breaks and the reader asks by
    another.

    A wake-up cannot be missed: the thread notes that a reader waits *before* it looks at the memory, and
    `notify` looks at that note *after* the memory was written.
    """

    def __init__(self, context: RunContext, memory: ParameterMemory) -> None:
        self.bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts)
        self.waiting: dict[bytes, int] = {}
        """Generation that each waiting reader has, by routing id; at most one entry per connection."""
        self._sent: dict[bytes, int] = {}
        """Generation that each connection was sent last; the oldest are forgotten."""
        self.answered = self.malformed = 0
        self.is_closed = False
        self._memory = memory
        self._newest: FlatParameters | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="parameter-publisher", daemon=True)
        self._thread.start()

    def require_alive(self) -> None:
        """Raise StreamError if no reader can be answered any more."""
        if self.is_closed or not self._thread.is_alive():
            state = "closed" if self.is_closed else "broken: its thread has ended, see the log"
            raise StreamError(f"the parameter stream is {state}")

    def notify(self) -> None:
        """Have the waiting readers answered."""
        if self.waiting:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread; a version on its way still has a moment to leave."""
        self.is_closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        socket = self.bound.socket
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self.is_closed:
            events = dict(poller.poll())
            if self._wake in events:
                os.eventfd_read(self._wake)
            if socket in events:
                self._take_requests(socket)
            self._answer(socket)
        socket.close()

    def _take_requests(self, socket: zmq.Socket[bytes]) -> None:
        while can_receive(socket):
            routing_id, *frames = socket.recv_multipart(zmq.NOBLOCK)
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"a request of {len(frames)} frames")
                newer_than = serialization.decode(frames[0], Want).newer_than
            except ProtocolError as error:
                self.malformed += 1
                _logger.debug("ignored a malformed message on the parameter stream: %s", error)
                continue
            if newer_than >= self._sent.get(routing_id, 0):
                self.waiting[routing_id] = newer_than

    def _answer(self, socket: zmq.Socket[bytes]) -> None:
        known = 0 if self._newest is None else self._newest.generation
        # Versions are copied out of the memory only when a reader of another node wants one.
        if self.waiting and (newer := self._memory.read(known)) is not None:
            self._newest = newer
        newest = self._newest
        if newest is None:
            return
        header = serialization.encode(Version(newest.generation, newest.policy_version))
        # Frames made once: they are lent to every reader's connection, and none of them copies what it encrypts from.
        frames = [zmq.Frame(part, copy=False) for part in in_frames(newest.flat.view(np.uint8).data)]
        for routing_id in [reader for reader, has in self.waiting.items() if has < newest.generation]:
            del self.waiting[routing_id]
            try:
                socket.send_multipart([routing_id, header, *frames], zmq.NOBLOCK, copy=False)
                self.answered += 1
                self._sent[routing_id] = newest.generation
            except zmq.Again:
                continue  # It asks again.
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
        while len(self._sent) > _MAX_REMEMBERED:
            del self._sent[next(iter(self._sent))]
