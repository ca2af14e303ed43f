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

import time
import uuid

from hpc_marl.base.doorbell import Doorbell
from hpc_marl.base.network import host_identity
from hpc_marl.base.run_context import RunContext
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.errors import StreamError
from hpc_marl.streams.ledger import NOTHING, Tally
from hpc_marl.streams.links import RecordWatch, Transport, connect
from hpc_marl.streams.sample_messages import PROTOCOL_VERSION, Hello, SampleMetadata
from hpc_marl.streams.sample_slots import SampleSlots
from hpc_marl.streams.sample_statistics import SenderStatistics
from hpc_marl.streams.sample_talk import SenderTalk
from hpc_marl.streams.sender_slots import SenderSlots

_LONGEST_WAIT_S = 0.1
_WAITING_INTERVAL_S = 0.0002
"""Between two looks at the socket, which cost 5 us each, by a sender without credit: an actor polls at every step."""
_ZMQ_INTERVAL_S = 0.001
"""The same where it may go on."""
_LANE_INTERVAL_S = 0.01
"""The same where batches go by the lane, which costs next to nothing to look at."""


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
        self._num_groups = num_groups
        self._memory = SampleSlots.create(
            layout, num_slots, shared=transport == "auto", label=f"hpc_marl samples {worker_name}"
        )
        self._bell = Doorbell()
        self._slots = SenderSlots(self._memory, num_groups)
        hello = Hello(
            stream=uuid.uuid4().hex,
            serial=0,
            heard=0,
            limit=0,
            produced=NOTHING,
            protocol=PROTOCOL_VERSION,
            worker_name=worker_name,
            incarnation=context.incarnation,
            epoch=epoch,
            host_identity=host_identity(),
            layout=layout,
            num_slots=num_slots,
            num_groups=num_groups,
            shared=None,
        )
        self._talk = SenderTalk(hello, self._memory, self._slots, self._bell)
        self._looked_s = self._next_look_s = 0.0
        self._abandoned = self._refused_acquires = 0
        self._closed = False

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
        batch = self._slots.take(group, self._talk.link.grant.batches)
        if batch is None:
            self._refused_acquires += 1
            if not self._talk.link.uses_lane:
                self._next_look_s = min(self._next_look_s, self._looked_s + _WAITING_INTERVAL_S)
        return batch

    def commit(self, batch: SampleBatch, metadata: SampleMetadata) -> int:
        """Send a batch that was acquired and is now full; return its sequence number.

        The batch must not be touched any more. It never waits: without a connection the batch stays in its slot.

        Raises:
            StreamError: it is not a batch that was acquired, is of another group, or has more episodes than steps.
        """
        talk = self._talk
        link, before = talk.link, talk.produced
        lane = link.lane
        encoded = b"" if lane is None else lane.check_fits(metadata)
        slot = self._slots.commit(batch, metadata, before, is_sent=link.uses_lane)
        talk.produced = Tally(
            before.batches + 1,
            before.env_steps + metadata.env_steps,
            before.agent_steps + metadata.agent_steps,
        )
        if lane is not None:
            lane.commit(slot.index, before, encoded)
        if link.uses_lane:
            link.ring()
        else:
            talk.flush()
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
        talk = self._talk
        if timeout_s <= 0 and time.monotonic() < self._next_look_s:
            if talk.link.uses_lane:
                talk.read_lane()
            return
        if self._closed:
            raise StreamError("this sample sender is closed")
        self._look_for_receiver()
        if talk.link.socket is None:
            time.sleep(min(max(timeout_s, 0.0), _LONGEST_WAIT_S))
        else:
            if timeout_s > 0:
                talk.link.wait(self._bell, timeout_s)
            talk.receive()
            talk.flush()
            talk.keep_in_touch()
            interval = _LANE_INTERVAL_S if talk.link.uses_lane else _ZMQ_INTERVAL_S
            self._looked_s = time.monotonic()
            self._next_look_s = self._looked_s + interval
        if talk.link.refusal is not None:
            raise StreamError(f"the trainer refuses the samples of {self._worker_name}: {talk.link.refusal}")

    def statistics(self) -> SenderStatistics:
        """Return counters and the state of the slots."""
        talk = self._talk
        return SenderStatistics(
            produced=talk.produced.batches,
            produced_env_steps=talk.produced.env_steps,
            produced_agent_steps=talk.produced.agent_steps,
            released=talk.released,
            lost=talk.lost,
            resent=talk.resent,
            abandoned=self._abandoned,
            refused_acquires=self._refused_acquires,
            writing=self._slots.num_writing,
            under_way=self._slots.num_under_way,
            granted=talk.link.grant.batches,
            num_slots=len(self._slots),
            receivers=talk.receivers,
            transport=talk.link.transport,
        )

    def close(self, drain_timeout_s: float = 1.0) -> None:
        """Say goodbye and let go; waits until all batches have arrived, or for `drain_timeout_s`."""
        if self._closed:
            return
        self._closed, self._next_look_s = True, 0.0
        self._say_goodbye(time.monotonic() + drain_timeout_s)
        self._talk.link.close(linger_ms=0 if self._talk.link.farewell else None)
        self._bell.close()
        self._slots.clear()
        self._memory.close()

    def _say_goodbye(self, deadline_s: float) -> None:
        talk, said = self._talk, False
        link = talk.link
        while link.socket is not None and link.is_streaming and link.is_connected():
            talk.receive()
            talk.flush()
            if not said and not self._slots.unsent:
                said = talk.say_goodbye()
            remaining = deadline_s - time.monotonic()
            if link.farewell or remaining <= 0:
                return
            link.socket.poll(round(min(remaining, _LONGEST_WAIT_S) * 1000) + 1)

    def _look_for_receiver(self) -> None:
        link = self._talk.link
        waiting = not link.is_streaming or self._slots.num_under_way > 0 or link.grant.batches == 0
        if not waiting or not self._talk.is_silent():
            return
        if self._watch.found_new(connected=link.is_connected()) and self._watch.record is not None:
            self._talk.turn_to(connect(self._context, self._watch.record))
