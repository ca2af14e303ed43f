"""InferenceClient: the actor's end of the inference stream; see `hpc_marl.streams.inference`."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zmq
from numpy.typing import NDArray

from hpc_marl.base import serialization
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.inference_messages import ReplyHead, RequestHead
from hpc_marl.streams.links import aligned, can_receive, can_send, connect, identity, look_up

_LOST_INTERVAL_S = 1.0
"""Between two looks for a server while there is none, or none that answers."""
_BALANCE_INTERVAL_S = 15.0
"""Between two looks whether servers have come or gone, so that clients spread over those that are there."""
_LONGEST_WAIT_S = 0.05
"""Between two looks at the clock while a caller waits for an answer."""
_SHORTEST_WAIT_S = 0.002
_MAX_MESSAGE_BYTES = 256 * 2**20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InferenceReply:
    """The answer to one request."""

    arrays: dict[str, NDArray[Any]]
    """What the policy worker sent: action, log_prob and, for recurrent policies, memory."""
    policy_version: int


@dataclass(frozen=True)
class ClientStatistics:
    """What a client did so far."""

    submitted: int
    answered: int
    sent_again: int
    late: int
    """Answers to requests that had been answered or replaced before."""
    malformed: int
    servers: int
    """Servers that it turned to, one after another."""


@dataclass(eq=False)
class _Open:
    """A group's open request."""

    head: RequestHead
    frames: list[Any]
    sent_s: float | None = None
    """None where it has not left, or must leave again."""
    reply: InferenceReply | None = None


class InferenceClient:
    """Asks one of the policy workers for actions; see `hpc_marl.streams.inference`. Not thread-safe.

    Args:
        context: of this process.
        root: where the servers publish.
        index: of the client: spreads the clients evenly over the servers.
        timeout_s: a request that waits for this long is sent again, to the next server.
    """

    def __init__(self, context: RunContext, root: str, index: int, *, timeout_s: float = 5.0) -> None:
        self._context = context
        self._root = root
        self._index = self._position = index
        self._timeout_s = timeout_s
        self._client = uuid.uuid4().hex
        self._record: ServiceRecord | None = None
        self._registered: list[tuple[str, bytes]] = []
        self._socket: zmq.Socket[bytes] | None = None
        self._open: dict[int, _Open] = {}
        self._next_id = 0
        self._looked_s = float("-inf")
        self._jitter = random.uniform(0.8, 1.2)
        self._answered = self._sent_again = self._late = self._malformed = self._servers = 0

    def submit(self, group: int, arrays: Mapping[str, NDArray[Any]], min_policy_version: int = 0) -> None:
        """Ask for the actions of one group; replaces an open request of the group.

        Args:
            group: environment group.
            arrays: observation [E, N, D], noise [E, N, K] and, where there are such, action_mask and
            memory. They
                must not be changed before the answer is collected: the request may have to be sent again.
            min_policy_version: the answer must come from a policy of at least this version.
        """
        header, buffers = serialization.array_frames(arrays)
        head = RequestHead(self._client, self._next_id, group, min_policy_version)
        self._next_id += 1
        self._open[group] = _Open(head, [serialization.encode(head), header, *buffers])
        self._keep_up()

    def collect(self, group: int, timeout_s: float = 0.0) -> InferenceReply | None:
        """Return the answer to the group's open request, or None where it is not there after `timeout_s`.

        Raises:
            StreamError: the group has no open request.
        """
        if group not in self._open:
            raise StreamError(f"group {group} has submitted nothing that could be collected")
        deadline = time.monotonic() + timeout_s
        while True:
            self._receive()
            if (reply := self._open[group].reply) is not None:
                del self._open[group]
                return reply
            self._keep_up()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self._wait(remaining, sent=self._open[group].sent_s is not None)

    def statistics(self) -> ClientStatistics:
        """Return counters."""
        return ClientStatistics(
            submitted=self._next_id,
            answered=self._answered,
            sent_again=self._sent_again,
            late=self._late,
            malformed=self._malformed,
            servers=self._servers,
        )

    def close(self) -> None:
        """Give up what is open and disconnect."""
        self._open.clear()
        self._disconnect()

    def _wait(self, remaining_s: float, sent: bool) -> None:
        wait_s = min(remaining_s, _LONGEST_WAIT_S if sent else _SHORTEST_WAIT_S)
        if self._socket is None:
            time.sleep(wait_s)
        else:
            self._socket.poll(round(wait_s * 1000) + 1)

    # ---- the server: choosing it, talking to it

    def _keep_up(self) -> None:
        """Send what has not left; turn to another server where the present one does not answer."""
        now = time.monotonic()
        waiting = [opened for opened in self._open.values() if opened.reply is None]
        overdue = any(
            opened.sent_s is not None and now - opened.sent_s >= self._timeout_s for opened in waiting
        )
        connected = self._socket is not None and can_send(self._socket)
        interval = _BALANCE_INTERVAL_S if connected and not overdue else _LOST_INTERVAL_S
        if now - self._looked_s >= interval * self._jitter:
            self._looked_s = now
            self._choose(connected, overdue)
        if self._socket is None or not can_send(self._socket):
            return
        for opened in waiting:
            if opened.sent_s is None:
                self._send(self._socket, opened, now)

    def _choose(self, connected: bool, overdue: bool) -> None:
        """Turn to the server that is ours among those registered now, or to the one after it."""
        servers = self._look_up()
        registered = [identity(record) for record in servers]
        if registered != self._registered:
            self._registered, self._position = registered, self._index
        elif self._record is not None and (overdue or not connected):
            self._position += 1
        if not servers:
            return
        record = servers[self._position % len(servers)]
        changed = self._record is None or identity(record) != identity(self._record)
        if changed:
            self._disconnect()
            self._record, self._socket = record, connect(self._context, record, _MAX_MESSAGE_BYTES)
            self._servers += 1
        if changed or overdue:
            for opened in self._open.values():
                self._sent_again += opened.sent_s is not None and opened.reply is None
                opened.sent_s = None

    def _look_up(self) -> list[ServiceRecord]:
        keys = self._context.resolver.find_subtree(self._root)
        return [record for key in keys if (record := look_up(self._context, key)) is not None]

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _send(self, socket: zmq.Socket[bytes], opened: _Open, now: float) -> None:
        try:
            socket.send_multipart(opened.frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        opened.sent_s = now

    def _receive(self) -> None:
        while self._socket is not None and can_receive(self._socket):
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            try:
                self._take_in(frames)
            except ProtocolError as error:
                self._malformed += 1
                _logger.debug("ignored a malformed answer on the inference stream: %s", error)

    def _take_in(self, frames: list[Any]) -> None:
        if len(frames) < 2:
            raise ProtocolError(f"an answer of {len(frames)} frames")
        head = serialization.decode(frames[0].buffer, ReplyHead)
        opened = self._open.get(head.group)
        if opened is None or opened.head.id != head.id or opened.reply is not None:
            self._late += 1
            return
        arrays = serialization.arrays_from_frames(
            frames[1].buffer, [aligned(frame.buffer) for frame in frames[2:]]
        )
        opened.reply = InferenceReply(arrays, head.policy_version)
        self._answered += 1
