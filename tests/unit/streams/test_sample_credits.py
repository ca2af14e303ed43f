"""CreditBook: fair shares, and a bound that holds however late senders hear of their grants."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_marl.streams.sample_credits import CreditBook


def join(book: CreditBook, stream: str, *, batch_bytes: int = 10, minimum: int = 1, maximum: int = 4) -> None:
    book.join(stream, batch_bytes=batch_bytes, minimum=minimum, maximum=maximum, limit=0)


def hear(book: CreditBook, *streams: str) -> None:
    for stream in streams:
        grant = book.grant(stream)
        book.confirm(stream, grant.number, grant.batches)


def grants(book: CreditBook, *streams: str) -> list[int]:
    return [book.grant(stream).batches for stream in streams]


def test_budget_is_shared_evenly_and_shared_anew_when_senders_come_and_go():
    book = CreditBook(60)
    join(book, "a")
    assert book.rebalance() == ["a"] and grants(book, "a") == [4]
    assert book.rebalance() == []
    hear(book, "a")
    join(book, "b")
    assert "a" in book.rebalance()
    assert grants(book, "a", "b") == [
        3,
        2,
    ]  # a has not said yet that it acts by 3: its fourth is still reserved
    hear(book, "a", "b")
    assert book.rebalance() == ["b"] and grants(book, "a", "b") == [3, 3]
    hear(book, "b")
    book.leave("a", held=0)
    assert book.rebalance() == ["b"] and grants(book, "b") == [4]


def test_everyone_gets_the_minimum_even_beyond_the_budget():
    book = CreditBook(25)
    for stream in "abcd":
        join(book, stream, minimum=2)
        book.rebalance()
        hear(book, stream)
    assert grants(book, *"abcd") == [2, 2, 2, 2]
    assert book.reserved_bytes == 80


def test_batches_of_a_dead_sender_are_not_granted_again_before_they_are_settled():
    book = CreditBook(40)
    join(book, "a")
    book.rebalance()
    book.leave("a", held=3)
    join(book, "b")
    book.rebalance()
    assert grants(book, "b") == [1]
    for _ in range(3):
        book.settle_left(10)
    assert book.rebalance() == ["b"] and grants(book, "b") == [4]


def test_a_word_from_before_a_grant_says_nothing_about_it():
    book = CreditBook(40)
    join(book, "a")
    book.rebalance()  # a may have 4 as soon as it hears of it
    join(book, "b")
    book.rebalance()
    assert grants(book, "a") == [2]
    book.confirm("a", 0, 1)  # said before a heard of the 4
    book.rebalance()
    assert book.reserved_bytes == 50 and grants(book, "b") == [1]
    hear(book, "a")
    book.rebalance()
    assert grants(book, "a", "b") == [2, 2]


def test_unequal_batches_share_bytes_within_the_budget():
    book = CreditBook(100)
    join(book, "big", batch_bytes=30, maximum=8)
    join(book, "small", batch_bytes=5, maximum=8)
    book.rebalance()
    hear(book, "big", "small")
    book.rebalance()
    big, small = grants(book, "big", "small")
    assert 30 * big + 5 * small <= 100
    assert (big, small) == (3, 2)


@dataclass
class _Sender:
    """Acts by the newest grant it has heard of; grants and words travel in order, for as long as they like."""

    batch_bytes: int
    minimum: int
    heard: tuple[int, int] = (0, 0)
    to_hear: list[tuple[int, int]] = field(default_factory=list)
    to_say: list[tuple[int, int]] = field(default_factory=list)
    in_use: int = 0

    def say(self) -> None:
        self.to_say.append((self.heard[0], max(self.heard[1], self.in_use)))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 200),
    st.lists(
        st.tuples(
            st.sampled_from(["join", "leave", "hear", "use", "release", "say", "listen"]), st.integers(0, 4)
        ),
        max_size=120,
    ),
)
def test_bound_holds_in_any_history(max_bytes, history):
    book = CreditBook(max_bytes)
    senders: dict[str, _Sender] = {}
    left_bytes = left_minimum = 0
    for action, index in history:
        name = f"s{index}"
        sender = senders.get(name)
        if action == "join" and sender is None:
            sender = senders[name] = _Sender(batch_bytes=7 * (index + 1), minimum=1 + index % 2)
            join(book, name, batch_bytes=sender.batch_bytes, minimum=sender.minimum, maximum=6)
            sender.to_hear.append((book.grant(name).number, book.grant(name).batches))
        elif sender is None:
            continue
        elif action == "leave":
            del senders[name]
            book.leave(name, held=sender.in_use)
            left_bytes += sender.in_use * sender.batch_bytes
            left_minimum += sender.minimum * sender.batch_bytes
        elif action == "hear" and sender.to_hear:
            sender.heard = sender.to_hear.pop(0)
            sender.say()
        elif action == "use" and sender.in_use < sender.heard[1]:
            sender.in_use += 1
        elif action == "release" and sender.in_use:
            sender.in_use -= 1
        elif action == "say":
            sender.say()
        elif action == "listen" and sender.to_say:
            book.confirm(name, *sender.to_say.pop(0))
        for changed in book.rebalance():
            grant = book.grant(changed)
            senders[changed].to_hear.append((grant.number, grant.batches))
        minimum = left_minimum + sum(s.minimum * s.batch_bytes for s in senders.values())
        used = left_bytes + sum(s.in_use * s.batch_bytes for s in senders.values())
        could_use = left_bytes + sum(
            max([s.in_use, s.heard[1], *(batches for _, batches in s.to_hear)]) * s.batch_bytes
            for s in senders.values()
        )
        assert used <= could_use <= book.reserved_bytes <= max_bytes + minimum
