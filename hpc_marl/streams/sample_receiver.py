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

import time
from collections import Counter
from collections.abc import Iterable

import zmq

from hpc_marl.base.run_context import RunContext
from hpc_marl.streams.ledger import Ledger
from hpc_marl.streams.links import Transport
from hpc_marl.streams.sample_admission import Admission
from hpc_marl.streams.sample_answers import PATIENCE_S
from hpc_marl.streams.sample_credits import CreditBook
from hpc_marl.streams.sample_intake import Intake
from hpc_marl.streams.sample_peer import ReceivedBatch
from hpc_marl.streams.sample_reception import Reception
from hpc_marl.streams.sample_sleep import Sleep
from hpc_marl.streams.sample_statistics import ReceiverStatistics

_ZMQ_INTERVAL_S = 0.0002
"""Between two looks at the socket by a receiver that does not wait: each costs 2 us."""


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
        self._intake = Intake(self.ledger)
        self._credits = CreditBook(max_bytes)
        self._next_look_s = 0.0
        bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts, max_message_bytes=max_message_bytes)
        self._socket = bound.socket
        self._sleep = Sleep(self._socket)
        self._reception = Reception(
            self._socket,
            self._sleep.bell,
            transport=transport,
            admission=Admission(max_message_bytes),
            credit_book=self._credits,
            intake=self._intake,
        )
        self._answers = self._reception.answers
        self._peers = self._reception.peers
        context.publish(key, bound, extra={"epoch": epoch})

    def poll(self, timeout_s: float = 0.0) -> int:
        """Take in what has arrived; return the new batches.

        Args:
            timeout_s: wait up to this long for the first of it. Whoever waits gets no more at a time than half of
                what senders may have under way: while that is worked with, the rest is on its way.
        """
        reception, before = self._reception, self._intake.received
        heard, now = reception.read_lanes(), time.monotonic()
        if timeout_s > 0 and not heard:
            if not reception.read_messages(self._enough()):
                self._wait(timeout_s)
        elif now >= self._next_look_s:
            self._next_look_s = now + _ZMQ_INTERVAL_S
            reception.read_messages()
        self._answers.tell(self._credits.rebalance())
        return self._intake.received - before

    def _wait(self, timeout_s: float) -> None:
        """Sleep until something arrives; meanwhile no sender is kept waiting for what was released."""
        if self._answers.are_waiting:
            heard = self._sleep_once(min(timeout_s, PATIENCE_S))
            self._answers.tell([], now=not heard)
            if heard:
                return
        self._sleep_once(timeout_s)

    def _sleep_once(self, timeout_s: float) -> bool:
        """Sleep until something arrives and take it in; return whether there was anything."""
        is_socket_ready = self._sleep.wait(self._peers.values(), timeout_s)
        heard = self._reception.read_lanes()
        return (is_socket_ready and self._reception.read_messages(self._enough())) or heard

    def _enough(self) -> int:
        return self._credits.granted_batches // 2 or 1

    def take(self, max_count: int | None = None) -> list[ReceivedBatch]:
        """Return batches that have arrived, oldest first; each must be given to `consume` or `drop` later."""
        return self._intake.take(max_count)

    def consume(self, batches: Iterable[ReceivedBatch]) -> None:
        """Book batches as learned from and release them; their arrays must not be used any more.

        Raises:
            StreamError: one of them was consumed or dropped before.
        """
        self._settle(batches, None)

    def drop(self, batches: Iterable[ReceivedBatch], reason: str) -> None:
        """Book batches as thrown away and release them.

        Raises:
            StreamError: one of them was consumed or dropped before.
        """
        self._settle(batches, reason)

    def forget(self, incarnation: str) -> None:
        """Fence a process off that the controller knows to be dead; what it had not got across is lost."""
        self._reception.read_messages()
        self._reception.forget(incarnation)
        self._answers.tell(self._credits.rebalance())

    @property
    def is_full(self) -> bool:
        """Whether all batches that senders may have under way are in the trainer's hands: no more can arrive.

        An update that waits for more than these waits for ever: `max_bytes` or the senders' slots are too few.
        """
        return 0 < self._credits.granted_batches <= self._intake.held

    def statistics(self) -> ReceiverStatistics:
        """Return counters and what is held."""
        return ReceiverStatistics(
            senders=len(self._peers),
            senders_by_transport=dict(Counter(peer.transport for peer in self._peers.values())),
            received=self._intake.received,
            held=self._intake.held,
            held_bytes=self._intake.held_bytes,
            peak_held_bytes=self._intake.peak_held_bytes,
            granted=self._credits.granted_batches,
            reserved_bytes=self._credits.reserved_bytes,
            ignored=dict(self._reception.ignored),
        )

    def close(self) -> None:
        """Stop listening; batches in hand stay readable and the ledger open."""
        self._socket.close()
        self._sleep.close()
        self._reception.close()

    def _settle(self, batches: Iterable[ReceivedBatch], reason: str | None) -> None:
        intake, peers, answers = self._intake, self._peers, self._answers
        for received in batches:
            intake.settle(received, reason)
            peer = peers.get(received.stream)
            if peer is None:
                self._credits.settle_left(received.nbytes)
            else:
                answers.release(peer, received.seq)
        answers.tell(self._credits.rebalance())
