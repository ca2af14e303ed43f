"""InferenceServer: the policy worker's end of the inference stream; see `hpc_marl.streams.inference`."""

from __future__ import annotations

import errno
import itertools
import logging
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import zmq
from numpy.typing import NDArray

from hpc_marl.base.doorbell import Doorbell
from hpc_marl.base.eager_poll import EagerPoll
from hpc_marl.base.run_context import RunContext
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.inference_layout import InferenceLayout, decode_layout
from hpc_marl.streams.inference_messages import (
    ASK,
    Attach,
    Attached,
    Refused,
    ReplyHead,
    RequestHead,
    from_client,
    to_frame,
)
from hpc_marl.streams.inference_seats import ClientSeat, attach_seat
from hpc_marl.streams.links import Transport

_MAX_MESSAGES_PER_POLL = 4096
_SWEEP_INTERVAL_S = 5.0
"""Between two looks for clients that have ended."""

_logger = logging.getLogger(__name__)


class _Origin(Protocol):
    """Where a request came from, and its answer goes to."""

    def answer(
        self, request: InferenceRequest, arrays: Mapping[str, NDArray[Any]], place: slice, policy_version: int
    ) -> None:
        """Write or send the answer."""

    def flush(self) -> int:
        """Let the client know of the answers; return how many could not be delivered."""


@dataclass(eq=False)
class InferenceRequest:
    """One environment group that waits for actions."""

    client: str
    """Id of the client; with `group` it names who waits."""
    id: int
    group: int
    min_policy_version: int
    """The answer must come from a policy of at least this version."""
    layout: InferenceLayout
    arrays: dict[str, NDArray[Any]]
    """observation [E, N, D], noise [E, N, K], and where there are such action_mask [E, N, A], memory [E, N, H];
    read-only."""
    origin: _Origin


@dataclass(frozen=True)
class ServerStatistics:
    """What a server did so far."""

    received: int
    answered: int
    waiting: int
    replaced: int
    """Requests that a later one of the same group, or the same one sent again, took the place of."""
    malformed: int
    unsendable: int
    """Answers to clients that had gone."""
    attached: int
    """Clients whose slots are read in place."""


class InferenceServer:
    """Collects requests and sends answers; see the module's text. Not thread-safe.

    Args:
        context: of this process.
        key: name to publish under.
        max_message_bytes: largest request.
        transport: zmq does not use shared memory where it is offered.
    """

    def __init__(
        self,
        context: RunContext,
        key: str,
        *,
        max_message_bytes: int = 256 * 2**20,
        transport: Transport = "auto",
    ) -> None:
        bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts, max_message_bytes=max_message_bytes)
        self._socket = bound.socket
        self._max_bytes = max_message_bytes
        self._bell = Doorbell() if transport == "auto" else None
        self._poll = EagerPoll()
        self._poll.register(int(self._socket.getsockopt(zmq.FD)), select.POLLIN)
        if self._bell is not None:
            self._poll.register(self._bell.fileno(), select.POLLIN)
        self._look_at_socket = True
        """ZMQ's descriptor tells of changes only; after a use of the socket it may be silent although there is more."""
        self._seats: dict[int, ClientSeat] = {}
        self._numbers = itertools.count()
        self._swept_s = time.monotonic()
        self._waiting: dict[tuple[str, int], InferenceRequest] = {}
        """By client and group, oldest first."""
        self._received = self._answered = self._replaced = self._malformed = self._unsendable = 0
        context.publish(key, bound)

    @property
    def num_waiting(self) -> int:
        """Requests that have not been taken."""
        return len(self._waiting)

    def poll(self, timeout_s: float = 0.0) -> int:
        """Take in what has arrived, waiting up to `timeout_s` for the first of it; return the new requests."""
        before = self._received
        if self._look_at_socket:
            self._receive()
        wait_s = timeout_s if self._received == before else 0.0
        bell = -1 if self._bell is None else self._bell.fileno()
        for fd, _ in self._poll.poll(wait_s):
            if fd == bell:
                self._listen()
            else:
                self._receive()
        self._sweep()
        return self._received - before

    def take(self, max_rows: int, policy_version: int | None = None) -> list[InferenceRequest]:
        """Return waiting requests, oldest first; each should be answered.

        Args:
            max_rows: of all of them together; one that is larger comes alone.
            policy_version: leave those waiting that need a newer one; None takes all.
        """
        taken: list[InferenceRequest] = []
        rows = 0
        for request in self._waiting.values():
            if policy_version is not None and request.min_policy_version > policy_version:
                continue
            if taken and rows + request.layout.rows > max_rows:
                break
            taken.append(request)
            rows += request.layout.rows
        for request in taken:
            del self._waiting[request.client, request.group]
        return taken

    def reply(
        self, requests: Sequence[InferenceRequest], arrays: Mapping[str, NDArray[Any]], policy_version: int
    ) -> None:
        """Answer requests; never waits. A client that does not get its answer asks again.

        Args:
            requests: answered together.
            arrays: those of the requests' layouts, the environments of all requests one after another; copied.
            policy_version: that acted.

        Raises:
            StreamError: the arrays do not fit the layouts.
        """
        _check(requests, arrays)
        start = 0
        for request in requests:
            stop = start + request.layout.num_envs
            request.origin.answer(request, arrays, slice(start, stop), policy_version)
            start = stop
        failed = sum(origin.flush() for origin in {id(r.origin): r.origin for r in requests}.values())
        self._unsendable += failed
        self._answered += len(requests) - failed

    def statistics(self) -> ServerStatistics:
        """Return counters."""
        return ServerStatistics(
            received=self._received,
            answered=self._answered,
            waiting=len(self._waiting),
            replaced=self._replaced,
            malformed=self._malformed,
            unsendable=self._unsendable,
            attached=len(self._seats),
        )

    def close(self) -> None:
        """Stop listening; clients turn to another server."""
        self._socket.close()
        self._waiting.clear()
        for seat in self._seats.values():
            seat.close()
        self._seats.clear()
        if self._bell is not None:
            self._bell.close()

    def _accept(self, request: InferenceRequest) -> None:
        if self._waiting.pop((request.client, request.group), None) is not None:
            self._replaced += 1
        self._waiting[request.client, request.group] = request
        self._received += 1

    # ---- clients of this node

    def _listen(self) -> None:
        assert self._bell is not None
        for number, group, request_id, min_policy_version in ASK.iter_unpack(self._bell.receive()):
            seat = self._seats.get(number)
            if seat is None or group >= seat.num_groups:
                continue  # of slots that the client has given up
            self._accept(
                InferenceRequest(
                    seat.client,
                    request_id,
                    group,
                    min_policy_version,
                    seat.slots.layout,
                    seat.slots.requests[group],
                    seat,
                )
            )

    def _attach(self, routing_id: bytes, offer: Attach) -> None:
        token = offer.memory.token
        answer: Attached | Refused
        try:
            if self._bell is None:
                raise StreamError("this server uses ZMQ only")
            answer = Attached(token, self._seat_number(offer), self._bell.handle())
        except StreamError as error:
            answer = Refused(token, str(error))
        self._send(routing_id, to_frame(answer))

    def _seat_number(self, offer: Attach) -> int:
        """Return the number of a client's seat; a new one replaces that of other slots."""
        known = [number for number, seat in self._seats.items() if seat.client == offer.client]
        if known and self._seats[known[0]].token == offer.memory.token:
            return known[0]  # the client has not heard of it yet
        number = next(self._numbers)
        self._seats[number] = attach_seat(offer, self._max_bytes)
        for earlier in known:
            self._leave(earlier)
        return number

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept_s >= _SWEEP_INTERVAL_S:
            self._swept_s = now
            for number, seat in list(self._seats.items()):
                if not seat.slots.creator_holds():
                    self._leave(number)

    def _leave(self, number: int) -> None:
        self._seats.pop(number).close()

    # ---- clients by ZMQ

    def _receive(self) -> None:
        self._look_at_socket = False
        for _ in range(_MAX_MESSAGES_PER_POLL):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take_in(frames)
            except ProtocolError as error:
                self._malformed += 1
                _logger.debug("ignored a malformed message on the inference stream: %s", error)
        self._look_at_socket = True

    def _take_in(self, frames: list[bytes]) -> None:
        if len(frames) != 2:
            raise ProtocolError(f"a message of {len(frames) - 1} frames; expected one")
        routing_id, frame = frames
        message, arrays = from_client(frame)
        if isinstance(message, Attach):
            self._attach(routing_id, message)
            return
        layout = decode_layout(message.layout)
        if layout.reply.nbytes > self._max_bytes:
            raise ProtocolError(f"answers of {layout.reply.nbytes} bytes; at most {self._max_bytes} are sent")
        if len(arrays) != layout.request.nbytes:
            raise ProtocolError(f"a request of {len(arrays)} bytes; expected {layout.request.nbytes}")
        self._accept(_by_zmq(message, layout, arrays, _ZmqOrigin(self, routing_id)))

    def _send(self, routing_id: bytes, frame: bytes) -> bool:
        """Send without waiting; return False where the client has gone."""
        self._look_at_socket = True
        try:
            self._socket.send_multipart([routing_id, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True


class _ZmqOrigin:
    """A request that came by ZMQ; its answer goes the same way."""

    def __init__(self, server: InferenceServer, routing_id: bytes) -> None:
        self._server = server
        self._routing_id = routing_id
        self._failed = 0

    def answer(
        self, request: InferenceRequest, arrays: Mapping[str, NDArray[Any]], place: slice, policy_version: int
    ) -> None:
        """Send the answer."""
        packed = request.layout.reply.packed(arrays, place)
        head = ReplyHead(request.id, request.group, policy_version)
        self._failed += not self._server._send(self._routing_id, to_frame(head, packed))

    def flush(self) -> int:
        """Return how many answers could not be sent."""
        return self._failed


def _by_zmq(
    head: RequestHead, layout: InferenceLayout, content: memoryview, origin: _Origin
) -> InferenceRequest:
    arrays = layout.request.views(content)  # read-only as the bytes of the message are
    return InferenceRequest(head.client, head.id, head.group, head.min_policy_version, layout, arrays, origin)


def _check(requests: Sequence[InferenceRequest], arrays: Mapping[str, NDArray[Any]]) -> None:
    total = sum(request.layout.num_envs for request in requests)
    checked: InferenceLayout | None = None
    for request in requests:
        if request.layout is not checked:
            checked = request.layout
            checked.reply.check_batch(arrays, total)
