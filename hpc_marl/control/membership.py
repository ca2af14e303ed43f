"""Membership: which actors count in an update now, and telling the trainers when that changes.

An actor counts from the moment its place is there until the place is lost, the actor is given up or drained. While its
process is merely being replaced it goes on counting: an update waits for the successor's batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from hpc_marl.config import ExperimentConfig
from hpc_marl.control.interfaces import WorkerControlPanel
from hpc_marl.control.worker_view import Launcher, WorkerView


def batches_of_update(config: ExperimentConfig, rank: int, actors: Collection[int]) -> int:
    """Return the sample batches of one update of the trainer `rank`.

    Args:
        config: the experiment.
        rank: index of the trainer, to which actor i sends if i % trainer.count == rank.
        actors: indices of the actors that count now.
    """
    trainers = config.trainer.count
    if config.trainer.batches_per_update is not None:
        return max(config.trainer.batches_per_update // trainers, 1)
    mine = sum(index % trainers == rank for index in actors)
    return max(mine * config.actors.num_groups, 1)


class Membership:
    """Keeps the trainers informed.

    Args:
        config: the experiment.
        panel: how to speak to the trainers.
        launcher: knows whose place is there.
    """

    def __init__(self, config: ExperimentConfig, panel: WorkerControlPanel, launcher: Launcher) -> None:
        self._config, self._panel, self._launcher = config, panel, launcher
        self._told: dict[str, int] = {}
        self._counted: set[str] = set()

    def counted(self, workers: Iterable[WorkerView]) -> list[int]:
        """Return the indices of the actors that count now."""
        return [
            worker.index
            for worker in workers
            if worker.kind == "actor" and worker.is_wanted and not self._launcher.waiting_for(worker.name)
        ]

    def share(self, trainer: WorkerView, workers: Iterable[WorkerView]) -> int:
        """Return the batches that a trainer is to be configured with, and remember that it was told."""
        share = batches_of_update(self._config, trainer.index, self.counted(workers))
        self._told[trainer.name] = share
        return share

    def update(self, workers: Mapping[str, WorkerView]) -> None:
        """Tell every configured trainer what changed: how many batches to expect, and who will send no more."""
        actors = self.counted(workers.values())
        now = {f"actor/{index}" for index in actors}
        gone = self._counted - now
        self._counted = now
        for trainer in workers.values():
            if trainer.kind != "trainer" or not trainer.configured or not trainer.is_live:
                continue
            share = batches_of_update(self._config, trainer.index, actors)
            lost = [name for name in gone if self._config.trainer_of(int(name.split("/")[1])) == trainer.name]
            if share == self._told.get(trainer.name) and not lost:
                continue
            self._told[trainer.name] = share
            for name in lost or [""]:
                view = workers.get(name)
                incarnation = "" if view is None else view.incarnation or view.last_incarnation
                self._panel.async_request(
                    trainer.name, "reconfigure", batches_per_update=share, gone=incarnation
                )
