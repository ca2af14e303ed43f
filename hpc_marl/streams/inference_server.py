"""InferenceServer: the policy worker's end of the inference stream; see `hpc_marl.streams.inference`."""

from __future__ import annotations

import itertools
import logging
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    from_client,
    to_frame,
)
from hpc_marl.streams.inference_port import RequestPort
from hpc_marl.streams.inference_requests import InferenceRequest
from hpc_marl.streams.inference_seats import ClientSeat, attach_seat
from hpc_marl.streams.links import Transport

_SWEEP_INTERVAL_S = 5.0
"""Between two looks for clients that have ended."""

_logger = logging.getLogger(__name__)


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
        self._port = RequestPort(context, key, max_message_bytes)
        self._max_bytes = max_message_bytes
        self._bell = Doorbell() if transport == "auto" else None
        self._poll = EagerPoll()
        self._poll.register(self._port.fd, select.POLLIN)
        if self._bell is not None:
            self._poll.register(self._bell.fileno(), select.POLLIN)
        self._seats: dict[int, ClientSeat] = {}
        self._numbers = itertools.count()
        self._swept_s = time.monotonic()
        self._waiting: dict[tuple[str, int], InferenceRequest] = {}
        """By client and group, oldest first."""
        self._received = self._answered = self._replaced = self._malformed = self._unsendable = 0

    @property
    def num_waiting(self) -> int:
        """Requests that have not been taken."""
        return len(self._waiting)

    def poll(self, timeout_s: float = 0.0) -> int:
        """Take in what has arrived, waiting up to `timeout_s` for the first of it; return the new requests."""
        before = self._received
        if not self._seats:  # nobody rings
            self._hear(timeout_s)
            return self._received - before
        if self._port.must_look:
            self._hear()
        wait_s = timeout_s if self._received == before else 0.0
        for fd, _ in self._poll.poll(wait_s):
            if fd == self._port.fd:
                self._hear()
            else:
                self._listen()
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
        origins = [requests[0].origin] if len(requests) == 1 else {r.origin: None for r in requests}
        failed = sum(origin.flush() for origin in origins)
        self._unsendable += failed
        self._answered += len(requests) - failed

    def statistics(self) -> ServerStatistics:
        """Return counters."""
        return ServerStatistics(
            received=self._received,
            answered=self._answered,
            waiting=len(self._waiting),
            replaced=self._replaced,
            malformed=self._malformed + self._port.malformed,
            unsendable=self._unsendable,
            attached=len(self._seats),
        )

    def close(self) -> None:
        """Stop listening; clients turn to another server."""
        self._port.close()
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
        self._port.send(routing_id, to_frame(answer))

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

    def _hear(self, wait_s: float = 0.0) -> None:
        for routing_id, content in self._port.messages(wait_s):
            try:
                self._take_in(routing_id, content)
            except ProtocolError as error:
                self._malformed += 1
                _logger.debug("ignored a malformed message on the inference stream: %s", error)

    def _take_in(self, routing_id: bytes, content: memoryview) -> None:
        head, packed = from_client(content)
        if isinstance(head, Attach):
            self._attach(routing_id, head)
            return
        layout = decode_layout(head.layout)
        if layout.reply.nbytes > self._max_bytes:
            raise ProtocolError(f"answers of {layout.reply.nbytes} bytes; at most {self._max_bytes} are sent")
        if len(packed) != layout.request.nbytes:
            raise ProtocolError(f"a request of {len(packed)} bytes; expected {layout.request.nbytes}")
        origin = _Correspondent(self._port, routing_id)
        arrays = layout.request.views(packed)
        self._accept(
            InferenceRequest(
                head.client, head.id, head.group, head.min_policy_version, layout, arrays, origin
            )
        )


class _Correspondent:
    """Where a request came from by ZMQ; its answer goes the same way."""

    __slots__ = ("_failed", "_port", "_routing_id")

    def __init__(self, port: RequestPort, routing_id: bytes) -> None:
        self._port = port
        self._routing_id = routing_id
        self._failed = 0

    def answer(
        self, request: InferenceRequest, arrays: Mapping[str, NDArray[Any]], place: slice, policy_version: int
    ) -> None:
        """Send the answer."""
        head = ReplyHead(request.id, request.group, policy_version)
        frame = to_frame(head, *request.layout.reply.parts(arrays, place))
        self._failed += not self._port.send(self._routing_id, frame)

    def flush(self) -> int:
        """Return how many answers could not be sent."""
        return self._failed


def _check(requests: Sequence[InferenceRequest], arrays: Mapping[str, NDArray[Any]]) -> None:
    total = sum(request.layout.num_envs for request in requests)
    checked: InferenceLayout | None = None
    for request in requests:
        if request.layout is not checked:
            checked = request.layout
            checked.reply.check_batch(arrays, total)
