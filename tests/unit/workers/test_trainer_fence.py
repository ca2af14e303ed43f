"""A trainer that was replaced ends and leaves everything to its successor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpc_marl.base.checkpoints import latest_checkpoint
from hpc_marl.base.epoch_fence import write_epoch
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import FencedError
from tests.unit.workers.trainer_trial import MadeUpActor, Trial, make_config, play


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path)
    yield made
    made.close()


def written(trial: Trial) -> dict[str, bytes]:
    """Return everything that trainers have written."""
    directory = trial.directory
    files = [path for root in (directory.checkpoints, directory.metrics) for path in root.rglob("*")]
    files.append(directory.ledger_file)
    return {str(path): path.read_bytes() for path in files if path.is_file() and "tfevents" not in path.name}


def test_a_replaced_trainer_ends_and_writes_nothing(trial: Trial) -> None:
    write_epoch(trial.directory.epoch_file, 1)
    with ExitStack() as stack:
        zombie, server = stack.enter_context(trial.trainer(make_config(), epoch=1))
        actor = stack.enter_context(ExitStack())
        made = MadeUpActor(trial)
        actor.callback(made.close)
        play(lambda: latest_checkpoint(trial.directory.checkpoints) is not None, made)
        assert server.call("checkpoint").endswith("e0001")
        write_epoch(trial.directory.epoch_file, 2)
        with pytest.raises(FencedError):
            server.call("checkpoint")
        before = written(trial)
        play(lambda: zombie.status is WorkerStatus.INTERRUPTED, made)
    after = written(trial)
    metrics = str(trial.directory.metrics / "metrics.jsonl")
    # rows that waited for the disk may follow; nothing else changes, and no ledger appears
    assert after.pop(metrics).startswith(before.pop(metrics))
    assert after == before
    assert not trial.directory.ledger_file.exists()


def test_the_ledger_is_its_successors(trial: Trial) -> None:
    """The zombie ends after its successor, which has already left the trial's ledger."""
    config = make_config()
    with trial.trainer(config, epoch=1) as (zombie, server), ExitStack() as stack:
        made = MadeUpActor(trial)
        stack.callback(made.close)
        play(lambda: latest_checkpoint(trial.directory.checkpoints) is not None, made)
        server.call("pause")  # a zombie that does not even get to look
        write_epoch(trial.directory.epoch_file, 2)
        with trial.trainer(config, epoch=2) as (successor, _):
            play(lambda: (found := latest_checkpoint(trial.directory.checkpoints)) and found.epoch == 2, made)
            assert successor.status is WorkerStatus.RUNNING
        before = written(trial)
        assert json.loads(before[str(trial.directory.ledger_file)])["consumed"] > 0
        assert zombie.status is WorkerStatus.PAUSED
    assert zombie.status is WorkerStatus.INTERRUPTED
    assert written(trial) == before


def test_an_orphaned_zombie_leaves_no_checkpoint(trial: Trial) -> None:
    with trial.trainer(make_config(), epoch=1) as (zombie, _), ExitStack() as stack:
        made = MadeUpActor(trial)
        stack.callback(made.close)
        play(lambda: latest_checkpoint(trial.directory.checkpoints) is not None, made)
        write_epoch(trial.directory.epoch_file, 2)
        zombie._orphan_grace_s = 0.001
        play(lambda: zombie.status is WorkerStatus.INTERRUPTED)
    steps = [path.name for path in trial.directory.checkpoints.glob("step-*")]
    assert steps and not trial.directory.ledger_file.exists()


def test_a_trainer_that_begins_too_late_does_not_even_publish(trial: Trial) -> None:
    write_epoch(trial.directory.epoch_file, 2)
    with trial.trainer(make_config(), epoch=1) as (zombie, _):
        play(lambda: zombie.status is WorkerStatus.INTERRUPTED)
    assert not list(trial.directory.metrics.rglob("*")) and not list(trial.directory.checkpoints.iterdir())
