"""InferenceServer: the policy worker's end of the inference stream; see `hpc_marl.streams.inference`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zmq
from numpy.typing import NDArray

from hpc_marl.base import serialization
from hpc_marl.base.run_context import RunContext
from hpc_marl.errors import ProtocolError
from hpc_marl.streams.inference_messages import ReplyHead, RequestHead
from hpc_marl.streams.links import aligned

_MAX_MESSAGES_PER_POLL = 4096

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """One environment group that waits for actions."""

    client: str
    """Id of the client; with `group` it names who waits."""
    id: int
    group: int
    min_policy_version: int
    """The answer must come from a policy of at least this version."""
    arrays: dict[str, NDArray[Any]]
    """observation [E, N, D], noise [E, N, K], and where there are such action_mask [E, N, A], memory [E, N, H]."""
    rows: int
    """E * N agent rows."""
    routing_id: bytes


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


class InferenceServer:
    """Collects requests and sends answers; see the module's text. Not thread-safe.

    Args:
        context: of this process.
        key: name to publish under.
        max_message_bytes: largest array of a request.
    """

    def __init__(self, context: RunContext, key: str, *, max_message_bytes: int = 256 * 2**20) -> None:
        bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts, max_message_bytes=max_message_bytes)
        self._socket = bound.socket
        self._waiting: dict[tuple[str, int], InferenceRequest] = {}
        """By client and group, oldest first."""
        self._received = self._answered = self._replaced = self._malformed = self._unsendable = 0
        context.publish(key, bound)

    def poll(self, timeout_s: float = 0.0) -> int:
        """Take in what has arrived, waiting up to `timeout_s` for the first of it; return the new requests."""
        before = self._received
        if self._socket.poll(max(round(timeout_s * 1000), 0)):
            for _ in range(_MAX_MESSAGES_PER_POLL):
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                self._take_in(frames)
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
            if taken and rows + request.rows > max_rows:
                break
            taken.append(request)
            rows += request.rows
        for request in taken:
            del self._waiting[request.client, request.group]
        return taken

    def reply(
        self, request: InferenceRequest, arrays: Mapping[str, NDArray[Any]], policy_version: int
    ) -> None:
        """Send an answer, a copy of the arrays; never waits. A client that does not get it asks again."""
        header, buffers = serialization.array_frames(arrays)
        reply = serialization.encode(ReplyHead(request.id, request.group, policy_version))
        try:
            self._socket.send_multipart([request.routing_id, reply, header, *buffers], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._unsendable += 1
        else:
            self._answered += 1

    def statistics(self) -> ServerStatistics:
        """Return counters."""
        return ServerStatistics(
            received=self._received,
            answered=self._answered,
            waiting=len(self._waiting),
            replaced=self._replaced,
            malformed=self._malformed,
            unsendable=self._unsendable,
        )

    def close(self) -> None:
        """Stop listening; clients turn to another server."""
        self._socket.close()
        self._waiting.clear()

    def _take_in(self, frames: list[Any]) -> None:
        try:
            if len(frames) < 3:
                raise ProtocolError(f"a request of {len(frames)} frames")
            head = serialization.decode(frames[1].buffer, RequestHead)
            arrays = serialization.arrays_from_frames(
                frames[2].buffer, [aligned(frame.buffer) for frame in frames[3:]]
            )
            observation = arrays.get("observation")
            if observation is None or observation.ndim < 2:
                raise ProtocolError("a request without observation [E, N, ...]")
        except ProtocolError as error:
            self._malformed += 1
            _logger.debug("ignored a malformed message on the inference stream: %s", error)
            return
        request = InferenceRequest(
            client=head.client,
            id=head.id,
            group=head.group,
            min_policy_version=head.min_policy_version,
            arrays=arrays,
            rows=observation.shape[0] * observation.shape[1],
            routing_id=frames[0].bytes,
        )
        if self._waiting.pop((head.client, head.group), None) is not None:
            self._replaced += 1
        self._waiting[head.client, head.group] = request
        self._received += 1
