"""SampleReceiver: the trainer's end of the sample stream.

    poll() -> take() -> ReceivedBatch ... consume() | drop(reason) -> slot and credit go back to the sender

Why nothing here grows: every batch that arrives was granted before, and all grants together stay within
`max_bytes` (`CreditBook` has the argument). Batches of senders on the same node are not even copied: they
are read in the slot that the environment wrote, which is not written again before it is released here. Both
ends speak of them through a `SampleLane`: no message is sent for such a batch, only a bell rung if the other
end sleeps.

Why each batch counts at most once: `Ledger` books every sequence number of every stream exactly once; what
it has booked before is ignored when it comes again. Of several lives of one actor only the newest is
listened to. Why none is missing while its sender lives: batches are taken in order, and one that comes
before its predecessor makes the sender send both again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from hpc_marl.base.run_context import RunContext
from hpc_marl.base.shared_memory import fence
from hpc_marl.errors import ProtocolError
from hpc_marl.streams.ledger import Ledger, Tally
from hpc_marl.streams.links import Transport, can_receive
from hpc_marl.streams.sample_admission import FENCED, Admission
from hpc_marl.streams.sample_answers import PATIENCE_S, Answers
from hpc_marl.streams.sample_credits import CreditBook
from hpc_marl.streams.sample_lane import Record
from hpc_marl.streams.sample_messages import (
    Commit,
    Farewell,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Refused,
    SenderMessage,
    Unknown,
    Welcome,
    decode_sender_message,
)
from hpc_marl.streams.sample_peer import Peer, ReceivedBatch, Shared
from hpc_marl.streams.sample_sleep import Sleep
from hpc_marl.streams.sample_statistics import ReceiverStatistics

_ZMQ_INTERVAL_S = 0.0002
"""Between two looks at the socket by a receiver that does not wait: each costs 2 us."""
_MAX_MESSAGES_PER_POLL = 4096  # a flood must not keep the trainer from its work

_logger = logging.getLogger(__name__)


class SampleReceiver:
    """Receives the sample batches of all actors; see the module's text. Not thread-safe.

    Args:
        context: of this process.
        key: name to publish under.
        max_bytes: most bytes of batches under way and held, all actors together; every environment group may
            have one batch, even if these are more.
        transport: see `Transport`; zmq refuses to share memory.
        epoch: the trainer's right to receive: senders do not follow an entry with a lower one.
        ledger: of the checkpoint that the trainer starts from.
        max_message_bytes: largest batch.
    """

    def __init__(
        self,
        context: RunContext,
        key: str,
        *,
        max_bytes: int,
        transport: Transport = "auto",
        epoch: int = 0,
        ledger: Ledger | None = None,
        max_message_bytes: int = 256 * 2**20,
    ) -> None:
        self.ledger = Ledger() if ledger is None else ledger
        """Accounts for every batch; put it into checkpoints."""
        self._transport = transport
        self._admission = Admission(max_message_bytes)
        self._credits = CreditBook(max_bytes)
        self._peers: dict[str, Peer] = {}
        self._by_name: dict[str, str] = {}
        self._ready: deque[ReceivedBatch] = deque()
        self._received = self._held = self._held_bytes = self._peak_held_bytes = 0
        self._ignored: Counter[str] = Counter()
        self._next_look_s = 0.0
        bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts, max_message_bytes=max_message_bytes)
        self._socket = bound.socket
        self._sleep = Sleep(self._socket)
        self._answers = Answers(self._socket, self._peers, self._credits, self._ignored)
        self._handlers: dict[type, Callable[[Peer, Any, list[Any]], None]] = {
            Commit: self._take_commit,
            Ping: self._take_ping,
            Goodbye: self._take_goodbye,
        }
        context.publish(key, bound, extra={"epoch": epoch})

    def poll(self, timeout_s: float = 0.0) -> int:
        """Take in what has arrived, waiting up to `timeout_s` for the first of it; return the new batches."""
        before = self._received
        heard, now = self._read_lanes(), time.monotonic()
        if timeout_s > 0 and not (heard or self._read_messages()):
            self._wait(timeout_s)
        elif now >= self._next_look_s:
            self._next_look_s = now + _ZMQ_INTERVAL_S
            self._read_messages()
        self._answers.tell(self._credits.rebalance())
        return self._received - before

    def _wait(self, timeout_s: float) -> None:
        """Sleep until something arrives; meanwhile no sender is kept waiting for what was released."""
        heard = False
        if self._answers.are_waiting:
            self._sleep.wait(self._peers.values(), min(timeout_s, PATIENCE_S))
            heard = self._read_lanes() | self._read_messages()
            self._answers.tell([], now=not heard)
        if not heard:
            self._sleep.wait(self._peers.values(), timeout_s)
            self._read_lanes()
            self._read_messages()

    def _read_lanes(self) -> bool:
        """Take in the batches that are in shared memory; return whether there was anything new."""
        news = [peer for peer in self._peers.values() if peer.has_news()]
        for peer in news:
            self._read_lane(peer)
        return bool(news)

    def _read_messages(self) -> bool:
        """Take in what came by ZMQ; return whether there was anything."""
        # Looking first costs a third of being told that nothing is there.
        count = 0
        while count < _MAX_MESSAGES_PER_POLL and can_receive(self._socket):
            self._take_message(self._socket.recv_multipart(zmq.NOBLOCK, copy=False))
            count += 1
        return count > 0

    def take(self, max_count: int | None = None) -> list[ReceivedBatch]:
        """Return batches that have arrived, oldest first; each must be given to `consume` or `drop` later."""
        count = len(self._ready) if max_count is None else min(max_count, len(self._ready))
        return [self._ready.popleft() for _ in range(count)]

    def consume(self, batches: Iterable[ReceivedBatch]) -> None:
        """Book batches as learned from and release them; their arrays must not be used any more.

        Raises:
            StreamError: one of them was consumed or dropped before.
        """
        self._settle(batches, self.ledger.consumed)

    def drop(self, batches: Iterable[ReceivedBatch], reason: str) -> None:
        """Book batches as thrown away and release them.

        Raises:
            StreamError: one of them was consumed or dropped before.
        """
        self._settle(batches, lambda stream, seq: self.ledger.dropped(stream, seq, reason))

    def forget(self, incarnation: str) -> None:
        """Fence a process off that the controller knows to be dead; what it had not got across is lost."""
        self._next_look_s = 0.0
        self.poll()
        self._admission.fence(incarnation)
        for peer in [peer for peer in self._peers.values() if peer.hello.incarnation == incarnation]:
            self._retire(peer)
        self._answers.tell(self._credits.rebalance())

    @property
    def is_full(self) -> bool:
        """Whether all batches that senders may have under way are in the trainer's hands: no more can arrive.

        An update that waits for more than these waits for ever: `max_bytes` or the senders' slots are too few.
        """
        return 0 < self._credits.granted_batches <= self._held

    def statistics(self) -> ReceiverStatistics:
        """Return counters and what is held."""
        return ReceiverStatistics(
            senders=len(self._peers),
            senders_by_transport=dict(Counter(peer.transport for peer in self._peers.values())),
            received=self._received,
            held=self._held,
            held_bytes=self._held_bytes,
            peak_held_bytes=self._peak_held_bytes,
            granted=self._credits.granted_batches,
            reserved_bytes=self._credits.reserved_bytes,
            ignored=dict(self._ignored),
        )

    def close(self) -> None:
        """Stop listening; batches in hand stay readable and the ledger open."""
        self._socket.close()
        self._sleep.close()
        for stream, peer in self._peers.items():
            self._credits.leave(stream, len(peer.held))
            peer.close()
        self._peers.clear()

    def _settle(self, batches: Iterable[ReceivedBatch], book: Callable[[str, int], None]) -> None:
        for received in batches:
            book(received.stream, received.seq)
            self._held -= 1
            self._held_bytes -= received.nbytes
            peer = self._peers.get(received.stream)
            if peer is None:
                self._credits.settle_left(received.nbytes)
            else:
                self._answers.release(peer, received.seq)
        self._answers.tell(self._credits.rebalance())

    # ---- what senders say

    def _take_message(self, frames: list[Any]) -> None:
        try:
            if len(frames) < 2:
                raise ProtocolError("a message without a header")
            message = decode_sender_message(frames[1].buffer)
            self._dispatch(frames[0].bytes, message, frames[2:])
        except ProtocolError as error:
            self._note_malformed(error)

    def _note_malformed(self, error: ProtocolError) -> None:
        count = self._ignored["malformed"] = self._ignored["malformed"] + 1
        if count.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: garbage must not fill the log
            _logger.warning("ignored malformed message %d on the sample stream: %s", count, str(error))

    def _dispatch(self, routing_id: bytes, message: SenderMessage, payload: list[Any]) -> None:
        peer = self._peers.get(message.stream)
        if peer is None:
            if self._admission.is_fenced(message.stream):
                self._turn_away(routing_id, message)
            elif isinstance(message, Hello):
                self._take_hello(routing_id, message)
            else:
                self._ignored["unknown"] += 1
                self._answers.send(routing_id, Unknown(stream=message.stream))
            return
        if message.serial <= peer.serial:
            self._ignored["overtaken"] += 1
            return
        peer.serial, peer.routing_id = message.serial, routing_id
        self._credits.confirm(message.stream, message.heard, message.limit)
        if isinstance(message, Hello):
            self._welcome(peer)
        else:
            self._handlers[type(message)](peer, message, payload)

    def _take_hello(self, routing_id: bytes, hello: Hello) -> None:
        problem = self._admission.problem(hello)
        shared = None if problem or self._transport == "zmq" else Shared.of(hello)
        if problem is None and shared is None:
            problem = self._admission.size_problem(hello)
        if problem is not None:
            self._ignored["fenced" if problem == FENCED else "refused"] += 1
            self._answers.send(routing_id, Refused(stream=hello.stream, message=problem))
            return
        self.ledger.produced(hello.stream, hello.produced)
        self._supersede(hello)
        self._admission.admit(hello)
        first_seq = self.ledger.next_seq(hello.stream) or 0
        peer = Peer(hello, routing_id, shared, first_seq, hello.serial)
        self._peers[hello.stream] = peer
        self._by_name[hello.worker_name] = hello.stream
        self._credits.join(
            hello.stream,
            batch_bytes=hello.layout.nbytes,
            minimum=hello.num_groups,
            maximum=hello.num_slots,
            limit=hello.limit,
        )
        self._welcome(peer)

    def _welcome(self, peer: Peer) -> None:
        stream, shared = peer.hello.stream, peer.shared
        grant = self._credits.grant(stream)
        if shared is not None:
            shared.give(grant)
        bell = None if shared is None else self._sleep.bell.handle()
        welcome = Welcome(stream=stream, grant=grant, first_seq=peer.first_seq, bell=bell)
        self._answers.send(peer.routing_id, welcome)

    def _turn_away(self, routing_id: bytes, message: SenderMessage) -> None:
        """Answer a stream that has ended: fenced off, or its goodbye was answered and the answer lost."""
        self._ignored["fenced"] += 1
        stream = message.stream
        if isinstance(message, Goodbye):
            self._answers.send(routing_id, Farewell(stream=stream))
        else:
            self._answers.send(routing_id, Refused(stream=stream, message=FENCED))

    def _supersede(self, hello: Hello) -> None:
        """Fence off the earlier life of the worker that says hello, or its earlier sender."""
        earlier = self._peers.get(self._by_name.get(hello.worker_name, ""))
        if earlier is not None:
            if earlier.hello.incarnation != hello.incarnation:
                self._admission.fence(earlier.hello.incarnation)
            self._retire(earlier)

    def _retire(self, peer: Peer) -> None:
        """Let go of a sender that cannot say goodbye. Its batches in hand stay valid: we map them too."""
        if self._read_lane(peer):
            self._end(peer, None)

    def _end(self, peer: Peer, total: Tally | None) -> None:
        stream = peer.hello.stream
        try:
            self.ledger.end(stream, total)
        except ProtocolError:  # a dying process may scribble; what has arrived is all there is to go by
            self._ignored["malformed"] += 1
            self.ledger.end(stream)
        self._admission.fence(stream)
        self._credits.leave(stream, len(peer.held))
        del self._peers[stream]
        if self._by_name.get(peer.hello.worker_name) == stream:
            del self._by_name[peer.hello.worker_name]
        peer.close()

    def _take_commit(self, peer: Peer, commit: Commit, payload: list[Any]) -> None:
        expected = self.ledger.next_seq(peer.hello.stream)
        if expected is None or commit.produced.batches < expected:
            self._ignored["duplicate"] += 1
            return
        if commit.produced.batches > expected:
            self._ignored["early"] += 1
            self._send_pong(peer, commit)
            return
        if payload and commit.content is not None:
            raise ProtocolError(f"a batch of {peer.hello.worker_name} came twice in one message")
        record = Record(expected, commit.slot, commit.produced, commit.metadata)
        self._book(record, peer, peer.unpack(record, commit.content, payload))

    def _read_lane(self, peer: Peer) -> bool:
        """Take in what the sender has written to its lane; return False where that makes no sense and it must go."""
        if peer.shared is None:
            return True
        stream, lane = peer.hello.stream, peer.shared.lane
        peer.seen = lane.sender_state()
        fence()
        try:
            for record in lane.records(self.ledger.next_seq(stream) or 0, peer.seen[0]):
                self._book(record, peer, peer.unpack(record))
        except ProtocolError as error:
            self._note_malformed(error)
            self._end(peer, None)
            self._answers.send(
                peer.routing_id, Refused(stream=stream, message=f"its lane is broken: {error}")
            )
            return False
        self._credits.confirm(stream, *lane.told())
        return True

    def _book(self, record: Record, peer: Peer, received: ReceivedBatch) -> None:
        tally = Tally(1, record.metadata.env_steps, record.metadata.agent_steps)
        self.ledger.received(received.stream, received.seq, before=record.before, batch=tally)
        peer.held[received.seq] = record.slot
        self._ready.append(received)
        self._received += 1
        self._held += 1
        self._held_bytes += received.nbytes
        self._peak_held_bytes = max(self._peak_held_bytes, self._held_bytes)

    def _take_ping(self, peer: Peer, ping: Ping, payload: list[Any]) -> None:
        if self._read_lane(peer):
            self._send_pong(peer, ping)

    def _send_pong(self, peer: Peer, message: Commit | Ping) -> None:
        # Messages of one connection keep their order, so what was sent before this and has not arrived never will.
        expected = self.ledger.next_seq(peer.hello.stream)
        pong = Pong(
            stream=peer.hello.stream,
            answers=message.serial,
            next_seq=message.produced.batches if expected is None else expected,
            held=sorted(peer.held),
            grant=self._credits.grant(peer.hello.stream),
        )
        self._answers.send(peer.routing_id, pong)

    def _take_goodbye(self, peer: Peer, goodbye: Goodbye, payload: list[Any]) -> None:
        if self._read_lane(peer):
            self._end(peer, goodbye.produced)
        self._answers.send(peer.routing_id, Farewell(stream=peer.hello.stream))
