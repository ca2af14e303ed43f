"""All trainers take a step or none does, whoever is paused, late, gone or leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import create_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.errors import WorkerError
from hpc_marl.workers import trainer_gang
from hpc_marl.workers.trainer_gang import Gang, make_gang
from tests.unit.streams.conftest import until

NewGang = Callable[..., Gang]


@pytest.fixture
def new_gang(tmp_path: Path) -> Iterator[NewGang]:
    """Return a function that makes one rank's end of a gang."""
    keyring = create_keyring(tmp_path / "auth")
    opened: list[RunContext] = []
    gangs: list[Gang] = []

    def make(rank: int, size: int = 3, epoch: int = 1) -> Gang:
        context = RunContext("exp", "trial", FileNameResolver(tmp_path / "names"), SocketFactory(keyring))
        opened.append(context)
        gangs.append(make_gang(context, epoch=epoch, rank=rank, world_size=size))
        return gangs[-1]

    yield make
    for gang in gangs:
        gang.close()
    for context in opened:
        context.close()


def take_step(gangs: list[Gang]) -> None:
    """Let all be ready until each was told to go, once."""
    gone: set[int] = set()

    def ask(i: int) -> None:
        if i not in gone and gangs[i].agree(True):
            gone.add(i)

    until(lambda: len(gone) == len(gangs), *(lambda i=i: ask(i) for i in range(len(gangs))))


def test_alone_one_agrees_with_oneself(new_gang: NewGang) -> None:
    gang = new_gang(0, 1)
    assert gang.agree(True) and not gang.agree(False) and not gang.listen() and not gang.leave()
    assert gang.reports(1.0) == {} and not gang.is_over


def test_all_go_together_again_and_again(new_gang: NewGang) -> None:
    gangs = [new_gang(rank) for rank in (1, 0, 2)]
    for _ in range(20):
        take_step(gangs)


def test_nobody_goes_before_the_last_is_ready(new_gang: NewGang) -> None:
    leader, ready, late = (new_gang(rank) for rank in range(3))
    take_step([leader, ready, late])
    answers: list[bool] = []

    def ask() -> None:
        answers.extend([leader.agree(True), ready.agree(True), late.agree(False)])

    until(lambda: len(answers) > 300, ask)
    assert not any(answers)
    take_step([leader, ready, late])


def test_a_promise_is_known_by_listening(new_gang: NewGang) -> None:
    """A paused trainer only listens; it learns that it must go, once, and nothing is lost by not asking."""
    leader, paused = new_gang(0, 2), new_gang(1, 2)
    assert not paused.listen()
    went: list[bool] = []
    until(lambda: went, lambda: paused.agree(True), lambda: went.append(True) if leader.agree(True) else None)
    until(lambda: paused.listen())
    assert paused.listen() and paused.agree(False) and not paused.listen()


def test_who_leaves_is_let_go_and_reports(new_gang: NewGang) -> None:
    leader, first, second = (new_gang(rank) for rank in range(3))
    take_step([leader, first, second])
    over = threading.Event()
    reported: dict[int, dict[str, int]] = {}

    def lead() -> None:
        while not leader.is_over:
            assert not leader.agree(True)
        reported.update(leader.reports(20.0))
        over.set()

    thread = threading.Thread(target=lead)
    thread.start()
    assert not first.leave()
    first.report({"of": 1})
    until(lambda: second.is_over, lambda: second.listen())
    assert not second.leave()
    second.report({"of": 2})
    thread.join(30.0)
    assert over.is_set() and reported == {1: {"of": 1}, 2: {"of": 2}}


def test_a_promised_step_comes_before_leaving(new_gang: NewGang) -> None:
    leader, follower = new_gang(0, 2), new_gang(1, 2)
    went: list[bool] = []
    until(
        lambda: went, lambda: follower.agree(True), lambda: went.append(True) if leader.agree(True) else None
    )
    assert follower.leave(), "the others are in the step already"
    assert follower.agree(True)
    assert not follower.leave()


def test_who_leaves_a_silent_gang_does_not_wait_for_ever(
    new_gang: NewGang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_gang, "_LEAVE_TIMEOUT_S", 0.05)
    alone = new_gang(1)
    assert not alone.leave()
    leader, follower = new_gang(0, 2, epoch=2), new_gang(1, 2, epoch=2)
    take_step([leader, follower])
    until(lambda: follower._has_promised, lambda: follower.agree(True))  # type: ignore[attr-defined]
    assert not follower.leave()  # the leader hangs, and never answers
    assert leader.reports(0.0) == {}


def test_a_trainer_that_was_started_again_cannot_slip_in(new_gang: NewGang) -> None:
    leader, follower = new_gang(0, 2), new_gang(1, 2)
    take_step([leader, follower])
    again = new_gang(1, 2)
    with pytest.raises(WorkerError, match="trainer/1 was started again"):
        until(lambda: False, lambda: again.agree(True), lambda: leader.agree(True))


def test_epochs_do_not_meet(new_gang: NewGang) -> None:
    old, new = new_gang(0, 2, epoch=1), new_gang(0, 2, epoch=2)
    follower = new_gang(1, 2, epoch=2)
    take_step([new, follower])
    assert not old.agree(True)
