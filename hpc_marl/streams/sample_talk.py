"""SenderTalk: what a sample sender and its receiver say to each other, by ZMQ and in their lane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import zmq

from hpc_marl.base.doorbell import Doorbell
from hpc_marl.base.shared_memory import keep_order
from hpc_marl.base.socket_shortcuts import can_receive
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.ledger import NOTHING
from hpc_marl.streams.sample_credits import Grant
from hpc_marl.streams.sample_lane import SampleLane
from hpc_marl.streams.sample_link import SenderLink
from hpc_marl.streams.sample_messages import (
    Commit,
    Credit,
    Farewell,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Refused,
    SharedParts,
    Unknown,
    Welcome,
    decode_receiver_message,
)
from hpc_marl.streams.sample_slots import SampleSlots
from hpc_marl.streams.sender_slots import SenderSlots

_SILENCE_S = 1.0
"""A receiver that says nothing for this long while it is waited for is asked, and looked up again."""
_REPAIR_S = 5.0
"""Between two questions to a receiver that does not answer (a long update, most likely) or is not silent."""

_Question = TypeVar("_Question", Ping, Goodbye)


class SenderTalk:
    """One sender's talk with its receivers, one after another. Not thread-safe.

    Args:
        hello: says what never changes about the sender; the rest is filled in.
        memory: of the slots.
        slots: of the sender.
        bell: by which a receiver of the same node wakes the sender.
    """

    def __init__(self, hello: Hello, memory: SampleSlots, slots: SenderSlots, bell: Doorbell) -> None:
        self._hello = hello
        self._memory = memory
        self._slots = slots
        self._bell = bell
        self._serial = 0
        self.stream = hello.stream
        self.produced = NOTHING
        """All that was committed."""
        self.link = SenderLink()
        """To the present receiver."""
        self.released = self.lost = self.resent = self.receivers = 0
        """Batches that a receiver was done with, that were under way to one that went away, and that were sent again;
        receivers that let the sender in."""
        self._handlers: dict[type, Callable[[Any], None]] = {
            Welcome: self._take_welcome,
            Refused: self._take_refusal,
            Unknown: self._take_unknown,
            Credit: self._take_credit,
            Pong: self._take_pong,
            Farewell: self._take_farewell,
        }

    # ---- to the receiver

    def is_silent(self) -> bool:
        """Return whether the receiver has said nothing for long."""
        return self.link.is_silent(_SILENCE_S)

    def turn_to(self, socket: zmq.Socket[bytes]) -> None:
        """Begin to talk with another receiver; what was under way to the one before is lost."""
        self.link.close(linger_ms=0)
        self.lost += self._slots.lose()
        self.link = SenderLink(socket)
        self.link.open_lane(self._new_lane())

    def flush(self) -> None:
        """Send what is committed, in order, as far as it will go."""
        link, unsent = self.link, self._slots.unsent
        while unsent and link.is_streaming:
            slot = unsent[0]
            assert slot.metadata is not None
            self._serial += 1
            commit = Commit(
                stream=self.stream,
                serial=self._serial,
                heard=link.grant.number,
                limit=self._limit(),
                produced=slot.before,
                slot=slot.index,
                metadata=slot.metadata,
            )
            if not link.send(commit, slot):
                return
            self._slots.note_sent(self._serial)

    def keep_in_touch(self) -> None:
        """Say what the receiver has to know and does not, and ask where an answer is overdue."""
        link, now = self.link, time.monotonic()
        if not link.is_streaming:
            if now - link.greeted_s >= _SILENCE_S and link.send(self._greeting()):
                link.greeted_s = now
            return
        if self._slots.unsent:
            return
        if link.uses_lane:
            link.tell(self._limit())
        news = link.told != (link.grant.number, self._limit())
        overdue = now - link.asked_s >= _REPAIR_S or (link.is_silent(_SILENCE_S) and not link.is_asked)
        if (news or (overdue and self._slots.num_under_way > 0)) and link.send(self._question(Ping)):
            link.asked_s, link.is_asked = now, True

    def say_goodbye(self) -> bool:
        """Say that nothing more will come; return False where that cannot leave now."""
        return self.link.send(self._question(Goodbye))

    def _new_lane(self) -> SampleLane | None:
        lane, label = None, f"hpc_marl lane {self._hello.worker_name}"
        if self._memory.handle is not None:
            with contextlib.suppress(StreamError):  # batches go by ZMQ then
                lane = SampleLane.create(self._hello.layout, len(self._slots), self.produced.batches, label)
                lane.tell(0, self._slots.num_in_use)
        return lane

    def _limit(self) -> int:
        return max(self.link.grant.batches, self._slots.num_in_use)

    def _question(self, kind: type[_Question]) -> _Question:
        self._serial += 1
        heard, limit = self.link.grant.number, self._limit()
        return kind(stream=self.stream, serial=self._serial, heard=heard, limit=limit, produced=self.produced)

    def _greeting(self) -> Hello:
        slots, lane, shared = self._memory.handle, self.link.lane, None
        if slots is not None and lane is not None:
            shared = SharedParts(slots=slots, lane=lane.handle, bell=self._bell.handle())
        self._serial += 1
        return msgspec.structs.replace(
            self._hello,
            serial=self._serial,
            heard=self.link.grant.number,
            limit=self._limit(),
            produced=self.produced,
            shared=shared,
        )

    # ---- from the receiver

    def receive(self) -> None:
        """Take in all that the receiver has said."""
        socket = self.link.socket
        while socket is not None and can_receive(socket):
            frames = socket.recv_multipart(zmq.NOBLOCK)
            # Only who holds the server's key can have sent it; a newer version might say what we do not know.
            with contextlib.suppress(ProtocolError):
                message = decode_receiver_message(frames[0])
                if message.stream == self.stream:
                    self.link.heard_s = time.monotonic()
                    self._handlers[type(message)](message)
        if self.link.uses_lane:
            self.read_lane()

    def read_lane(self) -> None:
        """Take in what the receiver has written to the lane."""
        link, lane = self.link, self.link.lane
        if lane is None or (news := lane.news) == link.news:
            return
        link.news, link.heard_s = news, time.monotonic()
        keep_order()
        self.released += self._slots.release_stamped(lane.stamps)
        grant = lane.grant()
        if grant is not link.grant or link.told[1] != grant.batches:
            self._take_grant(grant)
            link.tell(self._limit())

    def _take_welcome(self, welcome: Welcome) -> None:
        if not self.link.is_streaming:
            self.link.stream(welcome.bell)
            self.receivers += 1
            self.lost += self._slots.lose(before=welcome.first_seq)
            if welcome.bell is not None:
                self._slots.note_all_sent()
        self._take_grant(welcome.grant)

    def _take_refusal(self, refused: Refused) -> None:
        self.link.refusal = refused.message

    def _take_unknown(self, unknown: Unknown) -> None:
        if self.link.is_streaming:
            self.lost += self._slots.lose()
            self.link.open_lane(self._new_lane())

    def _take_credit(self, credit: Credit) -> None:
        self.released += self._slots.release(credit.released)
        self._take_grant(credit.grant)

    def _take_pong(self, pong: Pong) -> None:
        """Free what has arrived and is not held, and line up again what was swallowed."""
        self.link.is_asked = False
        self.released += self._slots.release_arrived(pong.next_seq, pong.held)
        if not self.link.uses_lane:
            self.resent += self._slots.send_again(pong.next_seq, pong.answers)
        self._take_grant(pong.grant)

    def _take_farewell(self, farewell: Farewell) -> None:
        self.link.farewell = True

    def _take_grant(self, grant: Grant) -> None:
        if grant.number >= self.link.grant.number:
            self.link.grant = grant
