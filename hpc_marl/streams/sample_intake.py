"""Intake: the batches in a receiver's hands, from their arrival to their release; the ledger knows each of them."""

from __future__ import annotations

from collections import deque

from hpc_marl.streams.ledger import Ledger, Tally
from hpc_marl.streams.sample_lane import Record
from hpc_marl.streams.sample_peer import Peer, ReceivedBatch


class Intake:
    """Counts what arrives and what is held. Pure.

    Args:
        ledger: books every batch.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.received = 0
        """Batches that arrived and counted."""
        self.held = self.held_bytes = self.peak_held_bytes = 0
        """Batches not released yet."""
        self._ready: deque[ReceivedBatch] = deque()

    def book(self, record: Record, peer: Peer, received: ReceivedBatch) -> None:
        """Book the arrival of a batch that was not booked before.

        Raises:
            ProtocolError: what its record counts makes no sense; nothing is booked.
        """
        metadata, seq = record.metadata, record.seq
        tally = Tally(1, metadata.env_steps, metadata.agent_steps)
        self.ledger.received(peer.stream, seq, before=record.before, batch=tally)
        peer.held[seq] = record.slot
        self._ready.append(received)
        self.received += 1
        self.held += 1
        self.held_bytes += received.nbytes
        self.peak_held_bytes = max(self.peak_held_bytes, self.held_bytes)

    def take(self, max_count: int | None) -> list[ReceivedBatch]:
        """Return batches that nobody has taken yet, oldest first."""
        ready = self._ready
        if max_count is None or max_count >= len(ready):
            taken = list(ready)
            ready.clear()
            return taken
        return [ready.popleft() for _ in range(max_count)]

    def settle(self, received: ReceivedBatch, reason: str | None) -> None:
        """Book a batch as learned from, or as dropped for a reason.

        Raises:
            StreamError: it was settled before.
        """
        if reason is None:
            self.ledger.consumed(received.stream, received.seq)
        else:
            self.ledger.dropped(received.stream, received.seq, reason)
        self.held -= 1
        self.held_bytes -= received.nbytes
