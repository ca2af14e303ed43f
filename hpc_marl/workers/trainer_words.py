"""What trainers tell each other after every update, and the books of all of them, kept by each.

A ledger in a word is of the very moment after its update, so that a checkpoint's ledgers fit its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpc_marl.streams.ledger import Ledger
from hpc_marl.streams.samples import SampleMetadata


class Word(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one trainer says after an update."""

    samples: list[SampleMetadata]
    """Of the batches that it learned from."""
    policy_lag: float
    is_replaced: bool
    """Whether it has seen that a newer epoch has begun: then all end."""
    counts: tuple[int, int, int]
    """Batches that it knows as produced, consumed and dropped."""
    ledger: dict[str, Any]
    """Empty of a trainer that is alone."""


class AllLedgers:
    """The ledgers of all trainers: one's own as it is, the others' as they were told last.

    Args:
        own: of this trainer's receiver.
        at_first: of all trainers, by rank, when this epoch began.
        rank: of this trainer.
    """

    def __init__(self, own: Ledger, at_first: Sequence[Ledger], rank: int) -> None:
        self._own, self._rank, self._size = own, rank, len(at_first)
        self._told = {i: ledger.to_dict() for i, ledger in enumerate(at_first) if i != rank}
        self._counts = {i: _counts(ledger) for i, ledger in enumerate(at_first) if i != rank}

    def word(self, samples: list[SampleMetadata], *, lag: float, is_replaced: bool) -> Word:
        """Return what this trainer has to say after an update."""
        alone = self._size == 1
        return Word(
            samples=samples,
            policy_lag=lag,
            is_replaced=is_replaced,
            counts=(0, 0, 0) if alone else _counts(self._own),
            ledger={} if alone else self._own.to_dict(),
        )

    def take(self, words: Sequence[Word]) -> None:
        """Take in the words of all trainers, by rank."""
        for rank, word in enumerate(words):
            if rank != self._rank:
                self._told[rank], self._counts[rank] = word.ledger, word.counts

    def take_last(self, ledgers: Mapping[int, dict[str, Any]]) -> None:
        """Take in last words; of a trainer that gave none, what it said after the last update stands."""
        self._told.update(ledgers)

    def to_list(self) -> list[dict[str, Any]]:
        """Return plain values of all ledgers, by rank; `deal_ledgers` reads them."""
        return [self._own.to_dict() if i == self._rank else self._told[i] for i in range(self._size)]

    def merged(self) -> Ledger:
        """Return one ledger of all trainers."""
        if self._size == 1:
            return self._own
        return _merged(self.to_list())

    def counts(self) -> tuple[int, int, int]:
        """Return the batches that are known as produced, consumed and dropped, of all trainers."""
        produced, consumed, dropped = zip(_counts(self._own), *self._counts.values(), strict=True)
        return sum(produced), sum(consumed), sum(dropped)


def deal_ledgers(saved: Sequence[dict[str, Any]], world_size: int) -> list[Ledger]:
    """Return the ledgers that the trainers start with, by rank.

    As many trainers as before get each its own back, as their actors may still be there. Otherwise every actor is a
    new one, and the first trainer keeps the old books.
    """
    if len(saved) == world_size:
        return [Ledger.from_dict(plain) for plain in saved]
    return [_merged(saved), *(Ledger() for _ in range(world_size - 1))]


def _merged(saved: Sequence[dict[str, Any]]) -> Ledger:
    whole = Ledger()
    for plain in saved:
        whole.absorb(Ledger.from_dict(plain))
    return whole


def _counts(ledger: Ledger) -> tuple[int, int, int]:
    totals = ledger.balance()
    return totals.produced, totals.consumed, totals.dropped_total
