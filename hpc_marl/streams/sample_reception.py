"""Reception: what the senders of a sample stream say to its receiver, by ZMQ and in their lanes, and who is let in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq

from hpc_marl.base.doorbell import Doorbell
from hpc_marl.base.shared_memory import keep_order
from hpc_marl.base.socket_shortcuts import can_receive
from hpc_marl.errors import ProtocolError
from hpc_marl.streams.ledger import Tally
from hpc_marl.streams.links import Transport
from hpc_marl.streams.sample_admission import FENCED, Admission
from hpc_marl.streams.sample_answers import Answers
from hpc_marl.streams.sample_credits import CreditBook
from hpc_marl.streams.sample_intake import Intake
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
from hpc_marl.streams.sample_peer import NOT_SEEN, Peer, Shared

_MAX_MESSAGES_PER_POLL = 4096  # a flood must not keep the trainer from its work

_logger = logging.getLogger(__name__)


class Reception:
    """Takes in what senders say and answers it. Not thread-safe.

    Args:
        socket: of the receiver.
        bell: wakes the receiver.
        transport: see `Transport`; zmq refuses to share memory.
        admission: knows who may come in.
        credit_book: shares the budget among those who are in.
        intake: books the batches.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        bell: Doorbell,
        *,
        transport: Transport,
        admission: Admission,
        credit_book: CreditBook,
        intake: Intake,
    ) -> None:
        self._socket = socket
        self._bell = bell
        self._transport = transport
        self._admission = admission
        self._credits = credit_book
        self._intake = intake
        self._ledger = intake.ledger
        self.peers: dict[str, Peer] = {}
        """Senders that were let in and have not left, by stream."""
        self._by_name: dict[str, str] = {}
        self.ignored: Counter[str] = Counter()
        """Messages not acted on, by reason."""
        self.answers = Answers(socket, self.peers, credit_book, self.ignored)
        self._handlers: dict[type, Callable[[Peer, Any, memoryview | None, list[zmq.Frame]], None]] = {
            Commit: self._take_commit,
            Ping: self._take_ping,
            Goodbye: self._take_goodbye,
        }

    def read_lanes(self) -> bool:
        """Take in the batches that are in shared memory; return whether there was anything new."""
        news = [peer for peer in self.peers.values() if peer.has_news()]
        for peer in news:
            self._read_lane(peer)
        return bool(news)

    def read_messages(self, enough: int | None = None) -> bool:
        """Take in what came by ZMQ; return whether there was anything.

        Args:
            enough: with so many batches leave the rest for the next time; None takes everything.
        """
        socket, count = self._socket, 0
        until = None if enough is None else self._intake.received + enough
        # Looking first costs a third of being told that nothing is there.
        while count < _MAX_MESSAGES_PER_POLL and can_receive(socket):
            routing_id, first = socket.recv(zmq.NOBLOCK), socket.recv(zmq.NOBLOCK, copy=False)
            payload = socket.recv_multipart(zmq.NOBLOCK, copy=False) if first.more else []
            self._take_message(routing_id, first.buffer, payload)
            count += 1
            if until is not None and self._intake.received >= until:
                break
        return count > 0

    def forget(self, incarnation: str) -> None:
        """Fence a process off; what it has not got across is lost."""
        self._admission.fence(incarnation)
        for peer in [peer for peer in self.peers.values() if peer.hello.incarnation == incarnation]:
            self._retire(peer)

    def close(self) -> None:
        """Let go of all senders."""
        for stream, peer in self.peers.items():
            self._credits.leave(stream, len(peer.held))
            peer.close()
        self.peers.clear()

    # ---- who is let in

    def _take_hello(self, routing_id: bytes, hello: Hello) -> None:
        problem = self._admission.problem(hello)
        shared = None if problem or self._transport == "zmq" else Shared.of(hello)
        if problem is None and shared is None:
            problem = self._admission.size_problem(hello)
        if problem is not None:
            self.ignored["fenced" if problem == FENCED else "refused"] += 1
            self.answers.send(routing_id, Refused(stream=hello.stream, message=problem))
            return
        self._ledger.produced(hello.stream, hello.produced)
        self._supersede(hello)
        self._admission.admit(hello)
        first_seq = self._ledger.next_seq(hello.stream) or 0
        peer = Peer(hello, routing_id, shared, first_seq, hello.serial)
        self.peers[hello.stream] = peer
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
        stream, shared = peer.stream, peer.shared
        grant = self._credits.grant(stream)
        if shared is not None:
            shared.give(grant)
        bell = None if shared is None else self._bell.handle()
        welcome = Welcome(stream=stream, grant=grant, first_seq=peer.first_seq, bell=bell)
        self.answers.send(peer.routing_id, welcome)

    def _turn_away(self, routing_id: bytes, message: SenderMessage) -> None:
        """Answer a stream that has ended: fenced off, or its goodbye was answered and the answer lost."""
        self.ignored["fenced"] += 1
        stream = message.stream
        if isinstance(message, Goodbye):
            self.answers.send(routing_id, Farewell(stream=stream))
        else:
            self.answers.send(routing_id, Refused(stream=stream, message=FENCED))

    def _supersede(self, hello: Hello) -> None:
        """Fence off the earlier life of the worker that says hello, or its earlier sender."""
        earlier = self.peers.get(self._by_name.get(hello.worker_name, ""))
        if earlier is not None:
            if earlier.hello.incarnation != hello.incarnation:
                self._admission.fence(earlier.hello.incarnation)
            self._retire(earlier)

    def _retire(self, peer: Peer) -> None:
        """Let go of a sender that cannot say goodbye. Its batches in hand stay valid: we map them too."""
        if self._read_lane(peer):
            self._end(peer, None)

    def _end(self, peer: Peer, total: Tally | None) -> None:
        stream = peer.stream
        try:
            self._ledger.end(stream, total)
        except ProtocolError:  # a dying process may scribble; what has arrived is all there is to go by
            self.ignored["malformed"] += 1
            self._ledger.end(stream)
        self._admission.fence(stream)
        self._credits.leave(stream, len(peer.held))
        del self.peers[stream]
        if self._by_name.get(peer.hello.worker_name) == stream:
            del self._by_name[peer.hello.worker_name]
        peer.close()

    # ---- what comes from those who are in

    def _take_message(self, routing_id: bytes, frame: memoryview, payload: list[zmq.Frame]) -> None:
        try:
            message, content = decode_sender_message(frame)
            self._dispatch(routing_id, message, content, payload)
        except ProtocolError as error:
            self._note_malformed(error)

    def _note_malformed(self, error: ProtocolError) -> None:
        count = self.ignored["malformed"] = self.ignored["malformed"] + 1
        if count.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: garbage must not fill the log
            _logger.warning("ignored malformed message %d on the sample stream: %s", count, str(error))

    def _dispatch(
        self, routing_id: bytes, message: SenderMessage, content: memoryview | None, payload: list[zmq.Frame]
    ) -> None:
        peer = self.peers.get(message.stream)
        if peer is None:
            if self._admission.is_fenced(message.stream):
                self._turn_away(routing_id, message)
            elif isinstance(message, Hello):
                self._take_hello(routing_id, message)
            else:
                self.ignored["unknown"] += 1
                self.answers.send(routing_id, Unknown(stream=message.stream))
            return
        if message.serial <= peer.serial:
            self.ignored["overtaken"] += 1
            return
        peer.serial, peer.routing_id = message.serial, routing_id
        self._credits.confirm(message.stream, message.heard, message.limit)
        peer.seen = NOT_SEEN  # what its lane tells is newer, even if that was read before this came
        if isinstance(message, Hello):
            self._welcome(peer)
        else:
            self._handlers[type(message)](peer, message, content, payload)

    def _take_commit(
        self, peer: Peer, commit: Commit, content: memoryview | None, payload: list[zmq.Frame]
    ) -> None:
        expected = self._ledger.next_seq(peer.stream)
        if expected is None or commit.produced.batches < expected:
            self.ignored["duplicate"] += 1
            return
        if commit.produced.batches > expected:
            self.ignored["early"] += 1
            self._send_pong(peer, commit)
            return
        record = Record(expected, commit.slot, commit.produced, commit.metadata)
        self._intake.book(record, peer, peer.unpack(record, content, payload))

    def _read_lane(self, peer: Peer) -> bool:
        """Take in what the sender has written to its lane; return False where that makes no sense and it must go."""
        if peer.shared is None:
            return True
        stream, lane = peer.stream, peer.shared.lane
        committed, told = lane.sender_state()
        has_told = told != peer.seen[1]
        peer.seen = committed, told
        keep_order()
        try:
            for record in lane.records(self._ledger.next_seq(stream) or 0, committed):
                self._intake.book(record, peer, peer.unpack(record))
        except ProtocolError as error:
            self._note_malformed(error)
            self._end(peer, None)
            self.answers.send(peer.routing_id, Refused(stream=stream, message=f"its lane is broken: {error}"))
            return False
        if has_told:
            self._credits.confirm(stream, *lane.told())
        return True

    def _take_ping(self, peer: Peer, ping: Ping, *_: object) -> None:
        if self._read_lane(peer):
            self._send_pong(peer, ping)

    def _send_pong(self, peer: Peer, message: Commit | Ping) -> None:
        # Messages of one connection keep their order, so what was sent before this and has not arrived never will.
        expected = self._ledger.next_seq(peer.stream)
        pong = Pong(
            stream=peer.stream,
            answers=message.serial,
            next_seq=message.produced.batches if expected is None else expected,
            held=sorted(peer.held),
            grant=self._credits.grant(peer.stream),
        )
        self.answers.send(peer.routing_id, pong)

    def _take_goodbye(self, peer: Peer, goodbye: Goodbye, *_: object) -> None:
        if self._read_lane(peer):
            self._end(peer, goodbye.produced)
        self.answers.send(peer.routing_id, Farewell(stream=peer.stream))
