"""The way of an inference client to its present server: a ZMQ connection, and on one node a line through memory.

requests by ZMQ --(Attach: slots, bell)--> Attached --> requests by the line: slot, number through the server's bell
                                      '--> Refused  --> by ZMQ as before
"""

from __future__ import annotations

import logging
import math
import select
import time
from functools import partial
from typing import NamedTuple

import zmq

from hpc_marl.base.doorbell import Doorbell, DoorbellButton
from hpc_marl.base.eager_poll import EagerLook, EagerPoll
from hpc_marl.base.network import host_identity
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.base.socket_shortcuts import can_receive, can_send, send_of
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.inference_messages import (
    ANSWER,
    ASK,
    Attach,
    Attached,
    Refused,
    ReplyHead,
    RequestHead,
    from_server,
    to_frame,
)
from hpc_marl.streams.inference_slots import InferenceSlots
from hpc_marl.streams.links import connect

_MAX_MESSAGE_BYTES = 256 * 2**20
_AWAKE_S = 0.0003
"""An answer by ZMQ takes 0.1 to 0.25 ms on one machine, where the network costs nothing."""
_NOBLOCK, _RCVTIMEO = int(zmq.NOBLOCK), int(zmq.RCVTIMEO)  # enums take a microsecond each time

_logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What came of one request."""

    id: int
    policy_version: int
    group: int
    content: memoryview | None
    """The packed arrays; None where they are in the group's slot already."""


class ServerLine:
    """Sends what is in the slots to one server, and hears of answers. Not thread-safe.

    Args:
        context: of this process.
        record: of the server.
        client: id of the client.
        shared: offer the slots, if the server is on this node.
    """

    def __init__(self, context: RunContext, record: ServiceRecord, client: str, *, shared: bool) -> None:
        self.record = record
        self._client = client
        self._socket = connect(context, record, _MAX_MESSAGE_BYTES)
        self.may_attach = shared and record.host_identity == host_identity()
        """Whether the server may still agree to read the slots."""
        self._offered_s: float | None = None
        self._bell: Doorbell | None = None
        self._button: DoorbellButton | None = None
        self.is_attached = False
        """Whether the server reads the slots."""
        self._number = 0
        self._send_frame = send_of(self._socket)
        self._wait_ms = -1
        self._poll = EagerPoll()
        # The server sleeps: with two cores only one of the ends can stay awake beside the threads of libzmq.
        self._eager = EagerLook(partial(can_receive, self._socket), awake_s=_AWAKE_S)
        self._zmq_poll = zmq.Poller()
        self._zmq_poll.register(self._socket, zmq.POLLIN)
        self.malformed = 0

    def is_up(self) -> bool:
        """Return whether a request would leave now."""
        if self._button is not None and any(fd == self._button.fileno() for fd, _ in self._poll.poll(0)):
            self._give_up_sharing()
        return self._button is not None or can_send(self._socket)

    def offer(self, slots: InferenceSlots, every_s: float) -> None:
        """Offer the slots to the server where that has a point, again where it did not answer for `every_s`."""
        now = time.monotonic()
        if not self.may_attach or self._button is not None or not can_send(self._socket):
            return
        if self._offered_s is not None and now - self._offered_s < every_s:
            return
        if (handle := slots.handle) is None:
            self.may_attach = False
            return
        if self._bell is None:
            self._bell = Doorbell()
            self._zmq_poll.register(self._bell.fileno(), zmq.POLLIN)
        offer = Attach(
            self._client,
            host_identity(),
            slots.layout.encoded,
            len(slots.requests),
            handle,
            self._bell.handle(),
        )
        if self._send(to_frame(offer)):
            self._offered_s = now

    def detach(self) -> None:
        """Go on by ZMQ, until the next offer."""
        self._offered_s = None
        self.is_attached = False
        if self._bell is not None:
            self._zmq_poll.unregister(self._bell.fileno())
            self._bell.close()
            self._bell = None
        if self._button is not None:
            self._button.close()
            self._button = None

    def ask(self, slots: InferenceSlots, group: int, number: int, min_policy_version: int) -> bool:
        """Send the request that is in a slot; return False where that is not possible now.

        Args:
            slots: where the request is.
            group: environment group.
            number: id of the request.
            min_policy_version: the answer must come from a policy of at least this version.
        """
        if self._button is None:
            head = RequestHead(self._client, number, group, min_policy_version, slots.layout.encoded)
            return self._send(to_frame(head, slots.request_bytes[group]))
        try:
            return self._button.send(ASK.pack(self._number, group, number, min_policy_version))
        except StreamError:
            self._give_up_sharing()
            return False

    def answers(self, slots: InferenceSlots, timeout_s: float, num_by_zmq: int) -> list[Answer]:
        """Return what has been answered, waiting up to `timeout_s` for the first of it.

        Args:
            slots: what was asked from them.
            timeout_s: longest wait.
            num_by_zmq: groups whose answers are to come by ZMQ.
        """
        if not num_by_zmq and self._button is not None:
            return self._answers_of_line(timeout_s)
        if self._bell is None and timeout_s > 0:
            return self._next_answer(timeout_s, slots)
        if timeout_s > 0 and not can_receive(self._socket):
            self._zmq_poll.poll(math.ceil(1000 * timeout_s))
        found: list[Answer] = []
        if self._button is not None and self._bell is not None:
            found = _read(self._bell)
        # The group that asked last is hardly ever answered yet, and every look costs as much as a message.
        for _ in range(max(num_by_zmq - 1, 1)):
            if not can_receive(self._socket):
                break
            found.extend(self._take_in(self._socket.recv(_NOBLOCK), slots))
        return found

    def close(self) -> None:
        """Disconnect."""
        self.detach()
        self._socket.close(linger=0)

    def _next_answer(self, timeout_s: float, slots: InferenceSlots) -> list[Answer]:
        """Stay awake for a moment where that is worth it, then sleep in the socket.

        This costs less than to sleep until it can be read, and then to read it.
        """
        self._eager.look(timeout_s)
        if (wait_ms := math.ceil(1000 * timeout_s)) != self._wait_ms:
            self._socket.set(_RCVTIMEO, wait_ms)
            self._wait_ms = wait_ms
        try:
            frame = self._socket.recv()
        except zmq.Again:
            return []
        return self._take_in(frame, slots)

    def _answers_of_line(self, timeout_s: float) -> list[Answer]:
        assert self._bell is not None and self._button is not None
        found: list[Answer] = []
        bell = self._bell
        for fd, _ in self._poll.poll(timeout_s):
            if fd == bell.fileno():
                found = _read(bell)
            else:
                self._give_up_sharing()
        return found

    def _give_up_sharing(self) -> None:
        """Nobody hears the server's bell any more: it is gone, or else reached by ZMQ."""
        self.detach()
        self.may_attach = False

    def _send(self, frame: bytes) -> bool:
        try:
            self._send_frame(frame, _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _take_in(self, frame: bytes, slots: InferenceSlots) -> list[Answer]:
        try:
            message, arrays = from_server(frame)
            if isinstance(message, ReplyHead) and len(arrays) != slots.layout.reply.nbytes:
                raise ProtocolError(f"an answer of {len(arrays)} bytes; expected {slots.layout.reply.nbytes}")
        except ProtocolError as error:
            self.malformed += 1
            _logger.debug("ignored a malformed answer on the inference stream: %s", error)
            return []
        if isinstance(message, ReplyHead):
            return [Answer(message.id, message.policy_version, message.group, arrays)]
        if (handle := slots.handle) is None or message.token != handle.token:
            return []  # of an earlier offer
        if isinstance(message, Refused):
            _logger.info("inference goes by ZMQ: %s", message.reason)
            self._give_up_sharing()
        elif self._button is None and self._bell is not None:
            self._take_up(message, self._bell)
        return []

    def _take_up(self, attached: Attached, bell: Doorbell) -> None:
        try:
            self._button = DoorbellButton(attached.bell)
        except StreamError as error:
            _logger.info("inference goes by ZMQ: %s", error)
            self._give_up_sharing()
            return
        self._number, self.is_attached = attached.line, True
        self._poll = EagerPoll()
        self._poll.register(bell.fileno(), select.POLLIN)
        self._poll.register(self._button.fileno(), 0)  # tells of errors only


def _read(bell: Doorbell) -> list[Answer]:
    return [
        Answer(number, policy_version, group, None)
        for number, policy_version, group in ANSWER.iter_unpack(bell.receive())
    ]
