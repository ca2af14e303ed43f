"""Which actors count in an update, and what the trainers are told."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hpc_marl.config import ActorGroupConfig, ExperimentConfig, TrainerGroupConfig, share_of_update
from hpc_marl.control.membership import Membership
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView


class Recorder:
    """Panel and launcher in one."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, str]] = []
        self.waiting: set[str] = set()

    def async_request(self, name: str, command: str, /, *, batches_per_update: int, gone: str) -> None:
        assert command == "reconfigure"
        self.sent.append((name, batches_per_update, gone))

    def waiting_for(self, name: str) -> str:
        return "Resources" if name in self.waiting else ""

    def take(self) -> list[tuple[str, int, str]]:
        sent, self.sent = self.sent, []
        return sent


def make(trainers: int, actors: int, **trainer: Any) -> tuple[ExperimentConfig, dict[str, WorkerView]]:
    config = ExperimentConfig(
        mode="async",
        actors=ActorGroupConfig(count=actors, num_envs=4, num_groups=2),
        trainer=TrainerGroupConfig(count=trainers, **trainer),
    )
    names = [f"trainer/{i}" for i in range(trainers)] + [f"actor/{i}" for i in range(actors)]
    return config, {
        name: WorkerView(name, 3, 1, status=WorkerStatus.RUNNING, configured=True, incarnation=f"{name}.0")
        for name in names
    }


@pytest.mark.parametrize(
    ("trainers", "batches_per_update", "actors", "shares"),
    [
        (1, None, [0, 1, 2], [6]),
        (2, None, [0, 1, 2], [4, 2]),
        (2, None, [0, 2], [4, 1]),  # nobody sends to the second: it waits for one batch at least
        (3, None, [], [1, 1, 1]),
        (2, 8, [0, 1, 2], [4, 4]),
        (4, 4, [0, 1, 2], [1, 1, 1, 1]),
    ],
)
def test_shares(trainers: int, batches_per_update: int | None, actors: list[int], shares: list[int]) -> None:
    config, _ = make(trainers, 4, batches_per_update=batches_per_update)
    assert [max(share_of_update(config, rank, actors), 1) for rank in range(trainers)] == shares


def test_trainers_are_told_what_changes_for_them_and_who_is_gone() -> None:
    config, workers = make(2, 4)
    stage = Recorder()
    stage.waiting.add("actor/3")
    membership = Membership(config, cast(Any, stage), cast(Any, stage))
    assert [membership.share(workers[name], workers.values()) for name in ("trainer/0", "trainer/1")] == [
        4,
        2,
    ]
    membership.update(workers)
    assert stage.take() == [], "they were configured with it"

    stage.waiting.clear()
    membership.update(workers)
    assert stage.take() == [("trainer/1", 4, "")]

    workers["actor/0"].given_up = True
    workers["actor/0"].end_life()
    workers["actor/1"].drained = True
    membership.update(workers)
    assert stage.take() == [("trainer/0", 2, "actor/0.0"), ("trainer/1", 2, "actor/1.0")]
    membership.update(workers)
    assert stage.take() == []


def test_an_actor_that_is_replaced_goes_on_counting() -> None:
    config, workers = make(1, 2)
    stage = Recorder()
    membership = Membership(config, cast(Any, stage), cast(Any, stage))
    membership.share(workers["trainer/0"], workers.values())
    membership.update(workers)
    workers["actor/0"].status = WorkerStatus.LOST
    workers["actor/0"].end_life()
    membership.update(workers)
    assert stage.take() == [] and membership.counted(workers.values()) == [0, 1]


def test_a_trainer_that_is_not_configured_is_told_nothing() -> None:
    config, workers = make(1, 2)
    stage = Recorder()
    membership = Membership(config, cast(Any, stage), cast(Any, stage))
    workers["trainer/0"].configured = False
    membership.update(workers)
    workers["actor/0"].given_up = True
    membership.update(workers)
    assert stage.take() == []
    workers["trainer/0"].configured = True
    membership.update(workers)
    assert stage.take() == [("trainer/0", 2, "")]


def test_a_taken_over_trainer_is_told_the_share_once() -> None:
    config, workers = make(1, 2)
    stage = Recorder()
    membership = Membership(config, cast(Any, stage), cast(Any, stage))
    membership.update(workers)
    membership.update(workers)
    assert stage.take() == [("trainer/0", 4, "")]
