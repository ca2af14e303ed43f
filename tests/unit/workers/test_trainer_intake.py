"""A trainer that copies its batches, as one with a GPU does: slots come back early, the next batch is staged ahead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_marl.algorithms import ppo as ppo_module
from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.staging import Staging
from hpc_marl.config import ActorGroupConfig, TrainerGroupConfig
from hpc_marl.policies import ActorCritic
from hpc_marl.streams.samples import SampleReceiver
from tests.unit.workers.trainer_trial import SPEC, MadeUpActor, Trial, make_config, play

EVENTS: list[tuple[str, Any]] = []


class CopyingSteps(AutogradSteps):
    """Steps that stage batches on the CPU, and say what happens when."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._staging = Staging(torch.device("cpu"))

    def stage(self, batches: Any) -> Any:
        EVENTS.append(("stage", len(batches)))
        return super().stage(batches)

    def read(self, batch: Any) -> None:
        assert self._staging is not None
        assert self._staging._pair_of(batch) is not None, "it was staged, and still stands where it was"
        EVENTS.append(("read", id(batch)))
        super().read(batch)

    def _found(self, made: Any) -> Any:
        EVENTS.append(("launched", len(made)))
        found = super()._found(made)
        EVENTS.append(("learned", len(made)))
        return found


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    real = SampleReceiver.consume

    def consume(receiver: SampleReceiver, batches: Any) -> None:
        EVENTS.append(("consume", len(batches)))
        real(receiver, batches)

    EVENTS.clear()
    monkeypatch.setattr(ppo_module, "AutogradSteps", CopyingSteps)
    monkeypatch.setattr(SampleReceiver, "consume", consume)
    made = Trial(tmp_path)
    yield made
    made.close()


def learn(trial: Trial, mode: str, updates: int) -> list[str]:
    """Train with two actors until so many updates were made; return what happened, in order."""
    config = make_config(
        mode=mode,
        actors=ActorGroupConfig(count=2, num_envs=4),
        trainer=TrainerGroupConfig(precision="bf16", checkpoint_interval_s=0.1),
    )
    actors = [MadeUpActor(trial, index) for index in range(2)]
    try:
        with trial.trainer(config, epoch=1):
            play(lambda: sum(name == "learned" for name, _ in EVENTS) >= updates, *actors)
    finally:
        for actor in actors:
            actor.close()
    return [name for name, _ in EVENTS]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_slots_come_back_before_learning_and_everything_is_accounted_for(trial: Trial, mode: str) -> None:
    names = learn(trial, mode, 4)
    assert names[:5] == ["stage", "consume", "read", "launched", "learned"]
    assert {number for name, number in EVENTS if name in ("stage", "consume")} == {2}
    ledger = json.loads(trial.directory.ledger_file.read_text())
    assert ledger["consumed"] == 2 * names.count("read")
    assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())
    versions = [
        json.loads(line)["policy_version"]
        for line in (trial.directory.metrics / "metrics.jsonl").read_text().splitlines()
    ]
    assert versions == list(range(1, names.count("read") + 1))
    if mode == "sync":  # nothing can come before the next version is out
        assert ("launched", "stage") not in pieces(2)


class EagerActor(MadeUpActor):
    """Sends batch after batch, as one does whose trainer sets the pace."""

    def poll(self) -> None:
        if self._seen[1] >= 0:
            self._weights = ActorCritic(SPEC).actor_weights()
        super().poll()


def test_what_came_while_a_gpu_learned_is_staged_before_the_wait_for_it(trial: Trial) -> None:
    actor = EagerActor(trial)
    config = make_config(mode="async", trainer=TrainerGroupConfig(precision="bf16"))
    try:
        with trial.trainer(config, epoch=1):
            play(lambda: ("launched", "stage", "learned", "consume") in pieces(4), actor)
    finally:
        actor.close()
    ledger = json.loads(trial.directory.ledger_file.read_text())
    assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())


def pieces(length: int) -> list[tuple[str, ...]]:
    """Return everything of some length that has happened in a row."""
    names = [name for name, _ in EVENTS]
    return [tuple(names[start : start + length]) for start in range(len(names))]
