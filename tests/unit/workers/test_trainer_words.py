"""The books of several trainers are the books of one trial."""

from __future__ import annotations

from typing import Any

import pytest

from hpc_marl.base import serialization
from hpc_marl.streams.ledger import Ledger, Tally
from hpc_marl.streams.samples import SampleMetadata
from hpc_marl.workers.trainer_words import AllLedgers, Word, deal_ledgers


def receive(ledger: Ledger, stream: str, *seqs: int) -> None:
    for seq in seqs:
        ledger.received(stream, seq, before=Tally(seq, 8 * seq, 16 * seq), batch=Tally(1, 8, 16))


def two_trainers() -> list[AllLedgers]:
    """Trainer/0 has consumed 2 of 3; trainer/1 has consumed 1, dropped 1, and 1 was lost."""
    ledgers = [Ledger(), Ledger()]
    receive(ledgers[0], "a", 0, 1, 2)
    ledgers[0].consumed("a", 0)
    ledgers[0].consumed("a", 1)
    receive(ledgers[1], "b", 0, 2)
    ledgers[1].consumed("b", 0)
    ledgers[1].dropped("b", 2, "stale")
    books = [AllLedgers(own, [Ledger(), Ledger()], rank) for rank, own in enumerate(ledgers)]
    sample = SampleMetadata(env_steps=8, agent_steps=16, episodes=[(1.5, 8)])
    words = [book.word([sample], lag=0.5, is_replaced=False) for book in books]
    told = [serialization.decode(serialization.encode(word), Word) for word in words]
    assert told[1].samples == [sample] and told[1].policy_lag == 0.5
    for book in books:
        book.take(told)
    return books


def test_counts_and_balance_are_those_of_all() -> None:
    for book in two_trainers():
        assert book.counts() == (6, 3, 2)
        merged = book.merged()
        merged.check()
        totals = merged.balance()
        # what is in the hands of a trainer now is lost to whoever goes on from this
        assert (totals.produced, totals.consumed, totals.in_flight) == (6, 3, 0)
        assert dict(totals.dropped) == {"lost": 1, "stale": 1, "trainer_restart": 1}


def test_a_last_word_replaces_what_was_told_before() -> None:
    first, _ = two_trainers()
    last = Ledger()
    receive(last, "b", 0, 2, 3)
    for seq in (0, 2):
        last.consumed("b", seq)
    last.dropped("b", 3, "shutdown")
    first.take_last({1: last.to_dict()})
    totals = first.merged().balance()
    assert (totals.consumed, totals.dropped["shutdown"]) == (4, 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ledgers_of_a_checkpoint_are_dealt_to_any_number_of_trainers(world_size: int) -> None:
    saved = two_trainers()[0].to_list()
    dealt = deal_ledgers(saved, world_size)
    assert len(dealt) == world_size
    totals = [ledger.balance() for ledger in dealt]
    produced: list[Any] = [total.produced for total in totals]
    assert produced == {1: [6], 2: [3, 3], 3: [6, 0, 0]}[world_size]
    assert sum(total.consumed + total.dropped_total for total in totals) == 6


def test_who_is_alone_keeps_its_books_to_itself() -> None:
    own = Ledger()
    receive(own, "a", 0, 1)
    book = AllLedgers(own, [Ledger()], 0)
    word = book.word([], lag=0.0, is_replaced=True)
    assert word.ledger == {} and word.is_replaced
    book.take([word])
    assert book.counts() == (2, 0, 0) and book.merged() is own and len(book.to_list()) == 1
