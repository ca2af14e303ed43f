"""ParameterReader: the acting end of the parameter stream; see `hpc_marl.streams.parameters`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from hpc_marl.base import serialization
from hpc_marl.base.network import host_identity
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.base.socket_shortcuts import can_receive, can_send
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.frames import FRAME_BYTES, from_frames
from hpc_marl.streams.links import RecordWatch, Transport, connect
from hpc_marl.streams.parameter_memory import FlatParameters, ParameterLayout, ParameterMemory
from hpc_marl.streams.parameter_messages import ParameterOffer, Version, Want

_SILENCE_S = 1.0
"""A publisher with nothing newer for this long may have been replaced: look."""
_ASK_AGAIN_S = 5.0
_ZMQ_INTERVAL_S = 0.0002
"""Between two looks at the socket, which cost some microseconds: who acts polls at every step."""
_MEMORY_INTERVAL_S = 0.02
"""Between two looks at whether the publisher is there, where one at shared memory says if there is a newer version."""
_SHORTEST_NAP_S = 0.0001
_LONGEST_NAP_S = 0.001
_LONGEST_WAIT_S = 0.1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ParameterSet:
    """One whole version; the arrays are the reader's own."""

    policy_version: int
    weights: dict[str, NDArray[np.float32]]
    epoch: int
    """Of the publisher: (epoch, policy_version) orders versions also across restarts."""


@dataclass(frozen=True)
class ReaderStatistics:
    """What a reader got so far."""

    received: int
    publishers: int
    """Publishers that it followed, one after another."""
    transport: str
    """shared_memory, zmq, or none before a publisher was found."""


class ParameterReader:
    """Reads the newest version; see `hpc_marl.streams.parameters`. Not thread-safe.

    Args:
        context: of this process.
        key: name of the publisher's entry.
        transport: zmq does not use shared memory where it is offered.
    """

    def __init__(self, context: RunContext, key: str, *, transport: Transport = "auto") -> None:
        self._context = context
        self._watch = RecordWatch(context, key)
        self._transport = transport
        self._offer: ParameterOffer | None = None
        self._layout: ParameterLayout | None = None
        self._memory: ParameterMemory | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._generation = 0
        self._newest: ParameterSet | None = None
        self._heard_s = -_SILENCE_S
        self._next_look_s = 0.0
        self._asked_s: float | None = None
        self._received = self._publishers = 0

    @property
    def metadata(self) -> dict[str, Any]:
        """What the publisher says about its weights; empty before one was found."""
        return {} if self._offer is None else self._offer.metadata

    def poll(self) -> ParameterSet | None:
        """Return the newest version if it is newer than what was returned before; never waits.

        Raises:
            SecurityError: the publisher's name entry is forged.
        """
        now = time.monotonic()
        if now < self._next_look_s and (self._memory is None or self._memory.generation == self._generation):
            return None
        self._look_for_publisher()
        found = self._read()
        self._next_look_s = now + (_ZMQ_INTERVAL_S if self._memory is None else _MEMORY_INTERVAL_S)
        if found is None:
            return None
        assert self._layout is not None and self._offer is not None
        self._generation = found.generation
        self._heard_s = time.monotonic()
        self._received += 1
        self._newest = ParameterSet(found.policy_version, self._layout.views(found.flat), self._offer.epoch)
        return self._newest

    def wait(self, min_version: int, timeout_s: float) -> ParameterSet | None:
        """Return the newest version once its policy_version is at least `min_version`.

        Returns:
            None where that is not the case after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        nap_s = _SHORTEST_NAP_S
        while True:
            self._next_look_s = 0.0
            self.poll()
            if self._newest is not None and self._newest.policy_version >= min_version:
                return self._newest
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            if self._socket is not None and self._asked_s is not None:
                self._socket.poll(round(min(remaining, _LONGEST_WAIT_S) * 1000) + 1)
            else:
                time.sleep(min(remaining, nap_s))
                nap_s = min(2 * nap_s, _LONGEST_NAP_S)

    def statistics(self) -> ReaderStatistics:
        """Return counters."""
        transport = "none" if self._offer is None else "zmq" if self._memory is None else "shared_memory"
        return ReaderStatistics(self._received, self._publishers, transport)

    def close(self) -> None:
        """Let go of the publisher; the arrays that were read stay valid."""
        self._let_go()

    def _look_for_publisher(self) -> None:
        if time.monotonic() - self._heard_s < _SILENCE_S:
            return
        if self._memory is not None:
            connected = self._memory.is_live()
        else:
            connected = self._socket is not None and can_send(self._socket)
        if self._watch.found_new(connected=connected) and self._watch.record is not None:
            self._follow(self._watch.record)

    def _follow(self, record: ServiceRecord) -> None:
        try:
            offer = msgspec.convert(record.extra, ParameterOffer)
            layout = ParameterLayout(offer.shapes)
        except msgspec.ValidationError as error:
            raise ProtocolError(
                f"the entry of the parameter stream {record.name} is not one: {error}"
            ) from error
        self._let_go()
        self._offer, self._layout = offer, layout
        self._generation, self._asked_s = 0, None
        self._publishers += 1
        same_node = record.host_identity == host_identity()
        if self._transport == "auto" and offer.shared_memory is not None and same_node:
            try:
                self._memory = ParameterMemory.attach(layout, offer.shared_memory)
                return
            except StreamError as error:
                _logger.info("parameters come by ZMQ: %s", error)
        self._socket = connect(self._context, record, max_message_bytes=FRAME_BYTES)

    def _let_go(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _read(self) -> FlatParameters | None:
        if self._memory is not None:
            return self._memory.read(self._generation)
        if self._socket is None:
            return None
        found = None
        while can_receive(self._socket):
            found = self._decode(self._socket.recv_multipart(zmq.NOBLOCK, copy=False)) or found
        self._ask(self._socket, self._generation if found is None else found.generation)
        return found

    def _ask(self, socket: zmq.Socket[bytes], newer_than: int) -> None:
        """Ask for the next version, once; again where the question or the answer seems to be lost."""
        if not can_send(socket):
            self._asked_s = None
            return
        now = time.monotonic()
        if self._asked_s is None or now - self._asked_s >= _ASK_AGAIN_S:
            socket.send(serialization.encode(Want(newer_than)), zmq.NOBLOCK)
            self._asked_s = now

    def _decode(self, frames: list[zmq.Frame]) -> FlatParameters | None:
        assert self._layout is not None
        flat = np.empty(self._layout.size, np.float32)
        try:
            version = serialization.decode(frames[0].buffer, Version)
            from_frames(frames[1:], flat.view(np.uint8))
        except ProtocolError:
            return None
        self._asked_s = None
        if version.generation <= self._generation:
            return None
        return FlatParameters(version.generation, version.policy_version, flat)
