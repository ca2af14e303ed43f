"""The ledger balances whatever is repeated, reordered, lost or killed, and counts no batch twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.ledger import LOST, TRAINER_RESTART, Ledger, Tally


def tally(batches: int) -> Tally:
    """What the first `batches` batches of any test stream hold: batch number n has n + 1 env_steps."""
    env_steps = batches * (batches + 1) // 2
    return Tally(batches, env_steps, 2 * env_steps)


def receive(ledger: Ledger, stream: str, seq: int) -> bool:
    return ledger.received(stream, seq, before=tally(seq), batch=tally(seq + 1) - tally(seq))


def test_gap_is_lost_with_its_steps():
    ledger = Ledger()
    assert receive(ledger, "a", 0) and receive(ledger, "a", 3)
    ledger.consumed("a", 0)
    ledger.dropped("a", 3, "stale")
    ledger.check()
    totals = ledger.balance()
    assert (totals.produced, totals.consumed, totals.in_flight) == (4, 1, 0)
    assert totals.dropped == {LOST: 2, "stale": 1} and totals.dropped_total == 3
    assert totals.produced_env_steps == 1 + 2 + 3 + 4
    assert totals.dropped_env_steps == 2 + 3 + 4
    assert totals.dropped_agent_steps == 2 * totals.dropped_env_steps


def test_a_batch_counts_once_however_often_it_arrives():
    ledger = Ledger()
    assert receive(ledger, "a", 2)
    assert not receive(ledger, "a", 2)
    assert not receive(ledger, "a", 1)  # was found missing; is lost for good
    ledger.consumed("a", 2)
    assert not receive(ledger, "a", 2)
    with pytest.raises(StreamError, match="not in flight"):
        ledger.consumed("a", 2)
    with pytest.raises(StreamError, match="not in flight"):
        ledger.dropped("a", 0, "stale")
    totals = ledger.balance()
    assert (totals.produced, totals.consumed, totals.dropped_total, totals.ignored) == (3, 1, 2, 3)


def test_end_books_what_never_arrived_and_ignores_what_comes_later():
    ledger = Ledger()
    receive(ledger, "a", 0)
    ledger.end("a", tally(3))
    assert not receive(ledger, "a", 3)
    assert ledger.balance().in_flight == 1
    ledger.consumed("a", 0)
    ledger.end("a", tally(9))
    ledger.produced("a", tally(9))
    assert not receive(ledger, "a", 4)
    ledger.check()
    totals = ledger.balance()
    assert (totals.produced, totals.consumed, totals.dropped) == (3, 1, {LOST: 2})


@pytest.mark.parametrize(
    ("seq", "before", "batch"),
    [
        (-1, Tally(-1), Tally(1)),
        (0, Tally(1), Tally(1)),
        (0, Tally(), Tally(2)),
        (0, Tally(), Tally(1, -5, 0)),
        (3, Tally(3, 1, 1), Tally(1, 1, 1)),  # fewer steps than the batches that arrived before
        (1, Tally(1, 7, 7), Tally(1, 1, 1)),  # more steps without more batches
    ],
)
def test_contradicting_numbers_are_refused_and_book_nothing(seq, before, batch):
    ledger = Ledger()
    ledger.received("a", 0, before=Tally(), batch=Tally(1, 5, 5))
    earlier = ledger.to_dict()
    with pytest.raises(ProtocolError):
        ledger.received("a", seq, before=before, batch=batch)
    assert ledger.to_dict() == earlier


def test_a_check_that_fails_names_the_stream_and_the_difference():
    ledger = Ledger()
    receive(ledger, "actor-7", 0)
    ledger._accounts["actor-7"].in_flight.clear()
    with pytest.raises(StreamError, match=r"actor-7.*batches=1"):
        ledger.check()


def test_checkpoint_drops_what_was_in_flight_and_finds_the_rest_as_a_gap():
    ledger = Ledger()
    for seq in range(3):
        receive(ledger, "a", seq)
    ledger.consumed("a", 0)
    plain = json.loads(json.dumps(ledger.to_dict()))
    ledger.consumed("a", 1)  # after the checkpoint: learned by weights that are gone
    receive(ledger, "a", 3)
    restored = Ledger.from_dict(plain)
    assert restored.balance().dropped == {TRAINER_RESTART: 2}
    assert not receive(restored, "a", 1)
    assert receive(restored, "a", 5)
    assert restored.balance().dropped == {TRAINER_RESTART: 2, LOST: 2}
    restored.check()


@pytest.mark.parametrize("plain", [{}, {"accounts": 3}, {"accounts": {}, "ended": {}}])
def test_what_is_not_a_ledger_is_refused(plain):
    with pytest.raises(StreamError, match="not a ledger"):
        Ledger.from_dict(plain)


def test_finished_streams_are_summed_up():
    ledger = Ledger()
    for life in range(50):
        receive(ledger, f"life-{life}", 0)
        ledger.consumed(f"life-{life}", 0)
        ledger.end(f"life-{life}")
    assert not ledger._accounts
    assert ledger.balance().consumed == 50
    assert not receive(ledger, "life-3", 1)
    assert Ledger.from_dict(ledger.to_dict()).balance().consumed == 50


@dataclass
class _World:
    """Senders, a network that does what it likes, and a trainer that dies; knows the truth."""

    ledger: Ledger = field(default_factory=Ledger)
    produced: list[int] = field(default_factory=lambda: [0, 0, 0])
    alive: list[bool] = field(default_factory=lambda: [True, True, True])
    network: list[tuple[int, int]] = field(default_factory=list)
    in_hand: list[tuple[int, int]] = field(default_factory=list)
    learned: list[tuple[int, int]] = field(default_factory=list)
    checkpoint: tuple[dict, list[tuple[int, int]]] | None = None

    def step(self, action: str, stream: int, choice: int) -> None:
        getattr(self, action)(stream, choice)
        self.ledger.check()

    def produce(self, stream: int, choice: int) -> None:
        if self.alive[stream]:
            self.network.append((stream, self.produced[stream]))
            self.produced[stream] += 1

    def deliver(self, stream: int, choice: int) -> None:
        self._deliver(choice, keep=False)

    def deliver_and_keep(self, stream: int, choice: int) -> None:
        self._deliver(choice, keep=True)

    def _deliver(self, choice: int, keep: bool) -> None:
        if self.network:
            index = choice % len(self.network)
            message = self.network[index] if keep else self.network.pop(index)
            if receive(self.ledger, f"s{message[0]}", message[1]):
                assert message not in self.in_hand and message not in self.learned
                self.in_hand.append(message)

    def swallow(self, stream: int, choice: int) -> None:
        if self.network:
            self.network.pop(choice % len(self.network))

    def learn(self, stream: int, choice: int) -> None:
        if self.in_hand:
            message = self.in_hand.pop(choice % len(self.in_hand))
            self.ledger.consumed(f"s{message[0]}", message[1])
            self.learned.append(message)

    def drop(self, stream: int, choice: int) -> None:
        if self.in_hand:
            message = self.in_hand.pop(choice % len(self.in_hand))
            self.ledger.dropped(f"s{message[0]}", message[1], "stale")

    def announce(self, stream: int, choice: int) -> None:
        self.ledger.produced(f"s{stream}", tally(self.produced[stream]))

    def kill_actor(self, stream: int, choice: int) -> None:
        self.alive[stream] = False
        self.ledger.end(f"s{stream}", tally(self.produced[stream]) if choice % 2 else None)

    def save(self, stream: int, choice: int) -> None:
        self.checkpoint = (json.loads(json.dumps(self.ledger.to_dict())), list(self.learned))

    def restart_trainer(self, stream: int, choice: int) -> None:
        plain, self.learned = self.checkpoint or (Ledger().to_dict(), [])
        self.learned = list(self.learned)
        self.ledger = Ledger.from_dict(plain)
        self.in_hand = []


_ACTIONS = [name for name in vars(_World) if not name.startswith("_") and callable(getattr(_World, name))]
_ACTIONS.remove("step")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*_ACTIONS, "produce", "produce", "deliver", "learn"]),
            st.integers(0, 2),
            st.integers(0, 99),
        ),
        max_size=80,
    )
)
def test_balances_in_any_history(history):
    world = _World()
    for action, stream, choice in history:
        world.step(action, stream, choice)
    # In the end everyone says what they produced; then the truth is known to the last batch.
    for stream in range(3):
        world.announce(stream, 0)
    world.ledger.check()
    totals = world.ledger.balance()
    assert totals.consumed == len(world.learned) == len(set(world.learned))
    assert totals.consumed_env_steps == sum(seq + 1 for _, seq in world.learned)
    assert totals.in_flight == len(world.in_hand)
    assert totals.produced == totals.consumed + totals.dropped_total + totals.in_flight
    if all(world.alive):
        assert totals.produced == sum(world.produced)
        assert totals.produced_env_steps == sum(tally(count).env_steps for count in world.produced)
