"""Gang: when the trainers of one epoch take the next step, all of them or none.

    trainer/1 ...  Ready(round) ----->  trainer/0      each says once that it has what the next step takes
                   <----------- Go(round)              all are ready: now everybody takes part, without fail
                   Leaving ---------->                 a trainer ends; no Go will follow
                   <---------------- Over              trainer/0 ends, or somebody else has
                   Report(ledger) --->                 the last word of each

A step is full of collectives of torch.distributed, in which everybody waits for everybody. Waiting for samples must not
happen there: it takes as long as it takes, and a trainer that waits answers its controller. So nobody enters before a
Go, and who is Ready keeps the promise, even if paused or told to exit meanwhile: until the answer is Over.

The first step, round 0, is to join the process group.
"""

from __future__ import annotations

import logging
import time
from typing import Any, cast

import msgspec
import zmq

from hpc_marl.base import names, serialization
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.socket_shortcuts import can_receive
from hpc_marl.errors import ProtocolError, WorkerError
from hpc_marl.streams.links import RecordWatch, connect

_log = logging.getLogger(__name__)

_REPEAT_S = 0.5
_LEAVE_TIMEOUT_S = 3.0
_MAX_MESSAGE_BYTES = 64 * 2**20


class _FromFollower(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    rank: int
    incarnation: str


class Ready(_FromFollower, frozen=True, kw_only=True):
    """Has what step `round` takes, and will take part."""

    round: int


class Leaving(_FromFollower, frozen=True, kw_only=True):
    """Asks to be let go."""


class Report(_FromFollower, frozen=True, kw_only=True):
    """The last word: what became of its sample batches."""

    ledger: dict[str, Any]


class Go(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """All are ready: step `round` begins."""

    round: int


class Over(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """No step will follow."""


class Gang:
    """One trainer alone: it agrees with itself, and nobody else has anything to report.

    Attributes:
        is_over: no further step will be agreed on.
    """

    is_over = False

    def agree(self, is_ready: bool, wait_s: float = 0.0) -> bool:
        """Return whether to take the next step now.

        Args:
            is_ready: this trainer has what the step takes; from then on it must keep asking until the answer is yes.
            wait_s: wait up to this long for the others, if this one is ready.
        """
        return is_ready

    def listen(self) -> bool:
        """Take in what the others say; return whether the next `agree` says yes to a promise made before."""
        return False

    def leave(self) -> bool:
        """Take no further part; return whether a step that was promised must be taken first (then call it again)."""
        return False

    def report(self, ledger: dict[str, Any]) -> None:
        """Give the last word."""

    def reports(self, timeout_s: float) -> dict[int, dict[str, Any]]:
        """End the gang; return the last words of the other ranks that come within `timeout_s`."""
        return {}

    def close(self) -> None:
        """Stop talking."""


def make_gang(context: RunContext, *, epoch: int, rank: int, world_size: int) -> Gang:
    """Return this rank's end of the gang of `epoch`."""
    if world_size == 1:
        return Gang()
    key = f"{names.rendezvous(context.experiment_name, context.trial_name, epoch)}/gang"
    return Leader(context, key, world_size) if rank == 0 else Follower(context, key, rank)


class Leader(Gang):
    """Rank 0: hears who is ready, and says go."""

    def __init__(self, context: RunContext, key: str, world_size: int) -> None:
        self._others = set(range(1, world_size))
        self._round = 0
        self._ready: set[int] = set()
        self._routes: dict[int, tuple[str, bytes]] = {}
        self._reports: dict[int, dict[str, Any]] = {}
        bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts, max_message_bytes=_MAX_MESSAGE_BYTES)
        self._socket = bound.socket
        context.publish(key, bound)

    def agree(self, is_ready: bool, wait_s: float = 0.0) -> bool:
        """See Gang."""
        self.listen()
        if is_ready and self._ready != self._others and self._socket.poll(round(wait_s * 1000)):
            self.listen()
        if not is_ready or self._ready != self._others or self.is_over:
            return False
        self._tell(self._others, Go(self._round))
        self._round += 1
        self._ready.clear()
        return True

    def listen(self) -> bool:
        """See Gang."""
        while can_receive(self._socket):
            route, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                message = _decode(frames, Ready | Leaving | Report)
            except ProtocolError as error:
                _log.debug("ignored a malformed message of another trainer: %s", error)
                continue
            if message.rank in self._others:
                self._take(route, message)
        return False

    def reports(self, timeout_s: float) -> dict[int, dict[str, Any]]:
        """See Gang."""
        self.is_over = True
        self._tell(self._others, Over())
        deadline = time.monotonic() + timeout_s
        self.listen()
        while self._reports.keys() != self._others and (left := deadline - time.monotonic()) > 0:
            self._socket.poll(max(round(left * 1000), 1))
            self.listen()
        return self._reports

    def close(self) -> None:
        """See Gang."""
        self._socket.close()

    def _take(self, route: bytes, message: Ready | Leaving | Report) -> None:
        known, _ = self._routes.get(message.rank, (message.incarnation, b""))
        if known != message.incarnation and self._round:
            raise WorkerError(
                f"trainer/{message.rank} was started again, but its epoch goes on without it: start all trainers "
                "with a new epoch"
            )
        self._routes[message.rank] = (message.incarnation, route)
        if isinstance(message, Report):
            self._reports[message.rank] = message.ledger
        elif isinstance(message, Leaving):
            _log.info("trainer/%d leaves; no update follows", message.rank)
            self.is_over = True
        elif message.round == self._round:
            self._ready.add(message.rank)
        if self.is_over and not isinstance(message, Report):
            self._tell({message.rank}, Over())

    def _tell(self, ranks: set[int], message: Go | Over) -> None:
        content = serialization.encode(message)
        for rank in ranks & self._routes.keys():
            try:
                self._socket.send_multipart([self._routes[rank][1], content], zmq.NOBLOCK)
            except zmq.ZMQError as error:  # it is gone; whoever enters the step without it finds out there
                _log.warning("trainer/%d cannot be reached: %s", rank, error)


class Follower(Gang):
    """Any other rank: says that it is ready, and waits for the word."""

    def __init__(self, context: RunContext, key: str, rank: int) -> None:
        self._context, self._rank = context, rank
        self._watch = RecordWatch(context, key)
        self._socket: zmq.Socket[bytes] | None = None
        self._round = 0
        self._has_promised = self._has_go = False
        self._next_ready_s = 0.0

    def agree(self, is_ready: bool, wait_s: float = 0.0) -> bool:
        """See Gang."""
        self.listen()
        if is_ready and not self._has_go and not self.is_over:
            self._promise()
            if self._socket is not None and self._socket.poll(round(wait_s * 1000)):
                self.listen()
        if not self._has_go:
            return False
        self._round += 1
        self._has_go = self._has_promised = False
        self._next_ready_s = 0.0
        return True

    def listen(self) -> bool:
        """See Gang."""
        if self._socket is None:
            return False
        while can_receive(self._socket):
            try:
                message = _decode(self._socket.recv_multipart(zmq.NOBLOCK), Go | Over)
            except ProtocolError as error:
                _log.debug("ignored a malformed message of trainer/0: %s", error)
                continue
            if isinstance(message, Over):
                self.is_over = True
            elif message.round == self._round and self._has_promised:
                self._has_go = True
        return self._has_go

    def leave(self) -> bool:
        """See Gang."""
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        has_asked = False
        while not self.listen() and self._socket is not None and not self.is_over:
            has_asked = has_asked or self._send(
                Leaving(rank=self._rank, incarnation=self._context.incarnation)
            )
            if not self._has_promised and has_asked:
                return False
            if time.monotonic() > deadline:
                _log.warning("trainer/0 does not answer; leaving without its word")
                return False
            self._socket.poll(10)
        return self._has_go

    def report(self, ledger: dict[str, Any]) -> None:
        """See Gang."""
        self._send(Report(rank=self._rank, incarnation=self._context.incarnation, ledger=ledger))

    def close(self) -> None:
        """See Gang."""
        if self._socket is not None:
            self._socket.close()

    def _promise(self) -> None:
        """Say that this rank is ready; again now and then, as a broken connection loses words."""
        if self._socket is None:
            if not self._watch.found_new(connected=False) or self._watch.record is None:
                return
            self._socket = connect(self._context, self._watch.record, _MAX_MESSAGE_BYTES)
        if time.monotonic() < self._next_ready_s:
            return
        ready = Ready(rank=self._rank, incarnation=self._context.incarnation, round=self._round)
        if self._send(ready):
            self._has_promised = True
            self._next_ready_s = time.monotonic() + _REPEAT_S

    def _send(self, message: _FromFollower) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(serialization.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


def _decode(frames: list[bytes], expected: Any) -> Any:
    if len(frames) != 1:
        raise ProtocolError(f"a message of {len(frames)} frames")
    return serialization.decode(frames[0], cast("type[Any]", expected))
