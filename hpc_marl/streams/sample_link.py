"""SenderLink: a sender's connection to the present receiver, and what was said over it."""

from __future__ import annotations

import logging
import select
import time
from dataclasses import dataclass, field

import zmq

from hpc_marl.base import serialization
from hpc_marl.base.doorbell import Doorbell, DoorbellButton, DoorbellHandle
from hpc_marl.base.socket_shortcuts import can_receive, can_send
from hpc_marl.errors import StreamError
from hpc_marl.streams.frames import in_frames
from hpc_marl.streams.sample_credits import NO_GRANT, Grant
from hpc_marl.streams.sample_lane import SampleLane
from hpc_marl.streams.sample_messages import COPIED_BYTES, Commit, CommitEncoder, SenderMessage
from hpc_marl.streams.sender_slots import Slot

_LONGEST_WAIT_S = 0.1

_logger = logging.getLogger(__name__)


@dataclass
class SenderLink:
    """One receiver as its sender knows it."""

    socket: zmq.Socket[bytes] | None = None
    lane: SampleLane | None = None
    """Made for this receiver; None where memory is not shared."""
    button: DoorbellButton | None = None
    """Wakes the receiver."""
    is_streaming: bool = False
    """The receiver has let us in."""
    uses_lane: bool = False
    """Batches go by the lane, not by ZMQ."""
    transport: str = "none"
    grant: Grant = NO_GRANT
    refusal: str | None = None
    told: tuple[int, int] = (0, 0)
    """Number of the grant and limit that the receiver was told last."""
    news: int = 0
    """Of the lane, as far as it was read."""
    heard_s: float = float("-inf")
    greeted_s: float = float("-inf")
    asked_s: float = field(default_factory=time.monotonic)
    is_asked: bool = False
    farewell: bool = False
    encoder: CommitEncoder = field(default_factory=CommitEncoder)

    def is_connected(self) -> bool:
        """Return whether a message would reach the receiver."""
        return self.socket is not None and can_send(self.socket)

    def is_silent(self, silence_s: float) -> bool:
        """Return whether nothing was heard for this long."""
        return time.monotonic() - self.heard_s >= silence_s

    def open_lane(self, lane: SampleLane | None) -> None:
        """Put another lane, for a receiver that knows nothing, in the place of this one."""
        self.close_lane()
        self.lane, self.news = lane, 0
        self.is_streaming, self.uses_lane, self.transport = False, False, "none"
        self.grant, self.told = NO_GRANT, (0, 0)
        self.greeted_s = float("-inf")

    def stream(self, bell: DoorbellHandle | None) -> None:
        """Take note that the receiver has let us in; it has a bell if it reads the lane."""
        self.is_streaming = True
        if bell is None:
            self.transport = "zmq"
            self.close_lane()
            return
        self.transport, self.uses_lane = "shared_memory", True
        try:
            self.button = DoorbellButton(bell)
        except StreamError as error:  # it has ended, or looks at the lane now and then
            _logger.info("the receiver of the samples cannot be woken: %s", error)

    def ring(self) -> None:
        """Wake the receiver if it waits for what was just written to the lane."""
        if self.button is not None and self.lane is not None and self.lane.receiver_waits():
            self.button.ring()

    def tell(self, limit: int) -> None:
        """Say over the lane which grant is acted by, and the most batches that may be under way."""
        told = self.grant.number, limit
        if told != self.told and self.lane is not None:
            self.lane.tell(*told)
            self.told = told

    def send(self, message: SenderMessage, slot: Slot | None = None) -> bool:
        """Send without waiting, a Commit with the bytes of its slot; return False where no message can leave now."""
        assert self.socket is not None
        try:
            if slot is None:
                self.socket.send(serialization.encode(message), zmq.NOBLOCK)
            elif isinstance(message, Commit) and len(slot.buffer) <= COPIED_BYTES:
                self.socket.send(self.encoder.encode(message, slot.buffer), zmq.NOBLOCK)
            else:
                frames: list[bytes | memoryview] = [serialization.encode(message), *in_frames(slot.buffer)]
                slot.tracker = self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False, track=True)
        except zmq.Again:
            return False
        self.told = (message.heard, message.limit)
        return True

    def wait(self, bell: Doorbell, timeout_s: float) -> None:
        """Sleep until the receiver says something; over the lane it rings the bell.

        Where there is a lane the socket is not waited for, but looked at again soon enough.
        """
        assert self.socket is not None
        if self.lane is None or not self.uses_lane:
            if not can_receive(self.socket):
                poll = select.poll()  # zmq.Poller costs several us more
                poll.register(self.socket.fileno(), select.POLLIN)
                poll.poll(round(timeout_s * 1000) + 1)
            return
        self.lane.set_sender_waits(True)
        if self.lane.news == self.news:
            bell.wait(min(timeout_s, _LONGEST_WAIT_S))
        self.lane.set_sender_waits(False)

    def close_lane(self) -> None:
        """Let go of the lane and the receiver's bell."""
        self.uses_lane = False
        if self.lane is not None:
            self.lane.close()
            self.lane = None
        if self.button is not None:
            self.button.close()
            self.button = None

    def close(self, linger_ms: int | None) -> None:
        """Let go of everything; what is not sent has `linger_ms` to leave."""
        self.close_lane()
        if self.socket is not None:
            self.socket.close(linger=linger_ms)
            self.socket = None
