"""SampleSender: the actor's end of the sample stream.

    acquire() -> slot, written in place by the environment -> commit() -> under way -> released by the receiver
       |  None: no credit                                        |
       '                                                     abandon(): free again, was never produced

    seeking --(name entry found: hello)--> greeting --(welcome)--> streaming --(another receiver)--> greeting

Why no queue grows: a batch only exists in one of `num_slots` slots, and a slot can only be acquired within the grant.

Why no batch is counted twice or silently missing: batches are numbered when they are committed, and every message says
how many came before. A batch that was under way to a receiver that died is *not* sent again to its successor: it was
sampled for a policy that the successor has already replaced or rolled back, and sending it twice would ask the
successor to know what its predecessor had learned from. Its number is simply never seen, and the ledger books the gap
as lost.

On one node batches do not travel: the receiver reads the slots, and both ends speak of them through a `SampleLane`. The
connection stays for letting each other in and saying goodbye; while it is broken the lane goes on.

Across nodes, what repairs a broken connection to a living receiver: batches wait in their slots while there is none.
The receiver takes them in order only, and says what it expects next when one comes too early or when it is asked by
Ping; what was swallowed by the break is sent again then. So a run is the same with the break and without it; a
synchronous trainer, which waits for a certain batch, gets it.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from hpc_marl.base.doorbell import Doorbell
from hpc_marl.base.network import host_identity
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.shared_memory import fence
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.ledger import NOTHING, Tally
from hpc_marl.streams.links import RecordWatch, Transport, can_receive, connect
from hpc_marl.streams.sample_credits import Grant
from hpc_marl.streams.sample_lane import SampleLane
from hpc_marl.streams.sample_link import SenderLink
from hpc_marl.streams.sample_messages import (
    COPIED_BYTES,
    PROTOCOL_VERSION,
    Commit,
    Credit,
    Farewell,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Refused,
    SampleMetadata,
    SharedParts,
    Unknown,
    Welcome,
    decode_receiver_message,
)
from hpc_marl.streams.sample_slots import SampleSlots
from hpc_marl.streams.sample_statistics import SenderStatistics
from hpc_marl.streams.sender_slots import SenderSlots

_SILENCE_S = 1.0
"""A receiver that says nothing for this long while it is waited for is asked, and looked up again."""
_REPAIR_S = 5.0
"""Between two questions to a receiver that does not answer (a long update, most likely) or is not silent."""
_LONGEST_WAIT_S = 0.1
_ZMQ_INTERVAL_S = 0.0002
"""Between two looks at the socket, which cost 2 us each: an actor polls at every step."""
_LANE_INTERVAL_S = 0.01
"""The same where batches go by the lane, which costs next to nothing to look at."""

_Message = TypeVar("_Message", Hello, Commit, Ping, Goodbye)


class SampleSender:
    """Sends one actor's sample batches to the trainer; see the module's text. Not thread-safe.

    Args:
        context: of this process.
        key: name of the receiver's entry.
        worker_name: such as `actor/3`.
        layout: of every batch.
        num_slots: batches that may at most be written and under way together.
        num_groups: environment groups that share the slots; every one of them can always have one batch.
        transport: see `Transport`.
        epoch: of this life of the actor, where the controller counts them: fences off its predecessors.

    Raises:
        StreamError: there are fewer slots than groups.
    """

    def __init__(
        self,
        context: RunContext,
        key: str,
        worker_name: str,
        layout: SampleLayout,
        num_slots: int,
        *,
        num_groups: int = 1,
        transport: Transport = "auto",
        epoch: int = 0,
    ) -> None:
        if not 1 <= num_groups <= num_slots:
            raise StreamError(f"{num_slots} slots for {num_groups} groups: every group needs one at least")
        self._context = context
        self._watch = RecordWatch(context, key)
        self._worker_name = worker_name
        self._layout = layout
        self._num_groups = num_groups
        self._epoch = epoch
        self._stream = uuid.uuid4().hex
        self._memory = SampleSlots.create(
            layout, num_slots, shared=transport == "auto", label=f"hpc_marl samples {worker_name}"
        )
        self._bell = Doorbell()
        self._slots = SenderSlots(self._memory, num_groups)
        self._produced = NOTHING
        self._serial = 0
        self._link = SenderLink()
        self._next_look_s = 0.0
        self._released = self._lost = self._abandoned = self._resent = 0
        self._refused_acquires = self._receivers = 0
        self._closed = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            Welcome: self._take_welcome,
            Refused: self._take_refusal,
            Unknown: self._take_unknown,
            Credit: self._take_credit,
            Pong: self._take_pong,
            Farewell: self._take_farewell,
        }

    def acquire(self, group: int = 0) -> SampleBatch | None:
        """Return a batch to be written in place, or None where there is no credit for one now.

        Args:
            group: environment group that will write it.

        Raises:
            StreamError: there is no such group.
        """
        if not 0 <= group < self._num_groups:
            raise StreamError(
                f"there is no group {group}: this sender was made with num_groups={self._num_groups}"
            )
        batch = self._slots.take(group, self._link.grant.batches)
        if batch is None:
            self._refused_acquires += 1
        return batch

    def commit(self, batch: SampleBatch, metadata: SampleMetadata) -> int:
        """Send a batch that was acquired and is now full; return its sequence number.

        The batch must not be touched any more. It never waits: without a connection the batch stays in its slot.

        Raises:
            StreamError: it is not a batch that was acquired, is of another group, or has more episodes than steps.
        """
        link, before = self._link, self._produced
        encoded = b"" if link.lane is None else link.lane.check_fits(metadata)
        slot = self._slots.commit(batch, metadata, before)
        self._produced = Tally(
            before.batches + 1,
            before.env_steps + metadata.env_steps,
            before.agent_steps + metadata.agent_steps,
        )
        if link.lane is not None:
            link.lane.commit(slot.index, before, encoded)
        if link.uses_lane:
            self._slots.unsent.clear()
            link.ring()
        else:
            self._flush()
        return before.batches

    def abandon(self, batch: SampleBatch) -> None:
        """Give an acquired batch back unused.

        Raises:
            StreamError: the batch is not one that was acquired.
        """
        self._slots.give_back(batch)
        self._abandoned += 1

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in what the receiver said, send what is waiting, look for a new receiver where that is due.

        Args:
            timeout_s: wait up to this long for the receiver to say something.

        Raises:
            StreamError: the receiver refuses this sender for good; the message says why.
        """
        if timeout_s <= 0 and time.monotonic() < self._next_look_s:
            if self._link.uses_lane:
                self._read_lane()
            return
        if self._closed:
            raise StreamError("this sample sender is closed")
        self._look_for_receiver()
        if self._link.socket is None:
            time.sleep(min(max(timeout_s, 0.0), _LONGEST_WAIT_S))
        else:
            if timeout_s > 0:
                self._link.wait(self._bell, timeout_s)
            self._receive()
            self._flush()
            self._keep_in_touch()
            interval = _LANE_INTERVAL_S if self._link.uses_lane else _ZMQ_INTERVAL_S
            self._next_look_s = time.monotonic() + interval
        if self._link.refusal is not None:
            raise StreamError(f"the trainer refuses the samples of {self._worker_name}: {self._link.refusal}")

    def statistics(self) -> SenderStatistics:
        """Return counters and the state of the slots."""
        return SenderStatistics(
            produced=self._produced.batches,
            produced_env_steps=self._produced.env_steps,
            produced_agent_steps=self._produced.agent_steps,
            released=self._released,
            lost=self._lost,
            resent=self._resent,
            abandoned=self._abandoned,
            refused_acquires=self._refused_acquires,
            writing=self._slots.num_writing,
            under_way=self._slots.num_under_way,
            granted=self._link.grant.batches,
            num_slots=len(self._slots),
            receivers=self._receivers,
            transport=self._link.transport,
        )

    def close(self, drain_timeout_s: float = 1.0) -> None:
        """Say goodbye and let go; waits until all batches have arrived, or for `drain_timeout_s`."""
        if self._closed:
            return
        self._closed, self._next_look_s = True, 0.0
        self._say_goodbye(time.monotonic() + drain_timeout_s)
        self._link.close(linger_ms=0 if self._link.farewell else None)
        self._bell.close()
        self._slots.clear()
        self._memory.close()

    def _say_goodbye(self, deadline_s: float) -> None:
        link, said = self._link, False
        while link.socket is not None and link.is_streaming and link.is_connected():
            self._receive()
            self._flush()
            if not said and not self._slots.unsent:
                said = self._link.send(self._message(Goodbye))
            remaining = deadline_s - time.monotonic()
            if link.farewell or remaining <= 0:
                return
            link.socket.poll(round(min(remaining, _LONGEST_WAIT_S) * 1000) + 1)

    # ---- to the receiver

    def _look_for_receiver(self) -> None:
        link = self._link
        waiting = not link.is_streaming or self._slots.num_under_way > 0 or link.grant.batches == 0
        if not waiting or not link.is_silent(_SILENCE_S):
            return
        if self._watch.found_new(connected=link.is_connected()) and self._watch.record is not None:
            link.close(linger_ms=0)
            self._lost += self._slots.lose()
            self._link = SenderLink(connect(self._context, self._watch.record))
            self._link.open_lane(self._new_lane())

    def _new_lane(self) -> SampleLane | None:
        lane, label = None, f"hpc_marl lane {self._worker_name}"
        if self._memory.handle is not None:
            with contextlib.suppress(StreamError):  # batches go by ZMQ then
                lane = SampleLane.create(self._layout, len(self._slots), self._produced.batches, label)
                lane.tell(0, self._slots.num_in_use)
        return lane

    def _keep_in_touch(self) -> None:
        link, now = self._link, time.monotonic()
        if not link.is_streaming:
            if now - link.greeted_s >= _SILENCE_S and self._link.send(self._hello()):
                link.greeted_s = now
            return
        if self._slots.unsent:
            return
        if link.uses_lane:
            link.tell(self._limit())
        news = link.told != (link.grant.number, self._limit())
        overdue = now - link.asked_s >= _REPAIR_S or (link.is_silent(_SILENCE_S) and not link.is_asked)
        if (news or (overdue and self._slots.num_under_way > 0)) and self._link.send(self._message(Ping)):
            link.asked_s, link.is_asked = now, True

    def _flush(self) -> None:
        """Send what is committed, in order, as far as it will go."""
        while self._slots.unsent and self._link.is_streaming:
            slot = self._slots.unsent[0]
            lent = None if len(slot.buffer) <= COPIED_BYTES else slot
            content = slot.buffer if lent is None else None
            parts = {"slot": slot.index, "metadata": slot.metadata, "content": content}
            commit = self._message(Commit, produced=slot.before, **parts)
            if not self._link.send(commit, lent):
                return
            slot.serial = commit.serial
            self._slots.unsent.popleft()

    def _limit(self) -> int:
        return max(self._link.grant.batches, self._slots.num_in_use)

    def _message(self, kind: type[_Message], **fields: Any) -> _Message:
        """Return a message that says what every message says, and `fields`."""
        self._serial += 1
        fields.setdefault("produced", self._produced)
        heard, limit = self._link.grant.number, self._limit()
        return kind(stream=self._stream, serial=self._serial, heard=heard, limit=limit, **fields)

    def _hello(self) -> Hello:
        slots, lane, shared = self._memory.handle, self._link.lane, None
        if slots is not None and lane is not None:
            shared = SharedParts(slots=slots, lane=lane.handle, bell=self._bell.handle())
        return self._message(
            Hello,
            protocol=PROTOCOL_VERSION,
            worker_name=self._worker_name,
            incarnation=self._context.incarnation,
            epoch=self._epoch,
            host_identity=host_identity(),
            layout=self._layout,
            num_slots=len(self._slots),
            num_groups=self._num_groups,
            shared=shared,
        )

    # ---- from the receiver

    def _receive(self) -> None:
        socket = self._link.socket
        while socket is not None and can_receive(socket):
            frames = socket.recv_multipart(zmq.NOBLOCK)
            # Only who holds the server's key can have sent it; a newer version might say what we do not know.
            with contextlib.suppress(ProtocolError):
                message = decode_receiver_message(frames[0])
                if message.stream == self._stream:
                    self._link.heard_s = time.monotonic()
                    self._handlers[type(message)](message)
        if self._link.uses_lane:
            self._read_lane()

    def _read_lane(self) -> None:
        link, lane = self._link, self._link.lane
        if lane is None or (news := lane.news) == link.news:
            return
        link.news, link.heard_s = news, time.monotonic()
        fence()
        self._released += self._slots.release_if(lane.is_released)
        self._take_grant(lane.grant())
        link.tell(self._limit())

    def _take_welcome(self, welcome: Welcome) -> None:
        if not self._link.is_streaming:
            self._link.stream(welcome.bell)
            self._receivers += 1
            self._lost += self._slots.release_if(lambda _, seq: seq < welcome.first_seq)
            if welcome.bell is not None:
                self._slots.unsent.clear()
        self._take_grant(welcome.grant)

    def _take_refusal(self, refused: Refused) -> None:
        self._link.refusal = refused.message

    def _take_unknown(self, unknown: Unknown) -> None:
        if self._link.is_streaming:
            self._lost += self._slots.lose()
            self._link.open_lane(self._new_lane())

    def _take_credit(self, credit: Credit) -> None:
        self._released += self._slots.release(credit.released)
        self._take_grant(credit.grant)

    def _take_pong(self, pong: Pong) -> None:
        self._link.is_asked = False
        settled = {seq for seq in self._slots.sent_seqs() if seq < pong.next_seq} - set(pong.held)
        self._released += self._slots.release(settled)
        if not self._link.uses_lane:
            self._resent += self._slots.send_again(pong.next_seq, pong.answers)
        self._take_grant(pong.grant)

    def _take_farewell(self, farewell: Farewell) -> None:
        self._link.farewell = True

    def _take_grant(self, grant: Grant) -> None:
        if grant.number >= self._link.grant.number:
            self._link.grant = grant
