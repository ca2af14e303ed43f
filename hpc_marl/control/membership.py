"""Membership: which actors count in an update now, and telling the trainers when that changes.

An actor counts from the moment its place is there until the place is lost, the actor is given up or drained. While its
process is merely being replaced it goes on counting: an update waits for the successor's batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpc_marl.config import ExperimentConfig, sample_trainer, share_of_update
from hpc_marl.control.interfaces import WorkerControlPanel
from hpc_marl.control.worker_view import Launcher, WorkerView


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
        share = max(share_of_update(self._config, trainer.index, self.counted(workers)), 1)
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
            share = max(share_of_update(self._config, trainer.index, actors), 1)
            lost = [
                name for name in gone if sample_trainer(self._config, int(name.split("/")[1])) == trainer.name
            ]
            if share == self._told.get(trainer.name) and not lost:
                continue
            self._told[trainer.name] = share
            for name in lost or [""]:
                view = workers.get(name)
                incarnation = "" if view is None else view.incarnation or view.last_incarnation
                self._panel.async_request(
                    trainer.name, "reconfigure", batches_per_update=share, gone=incarnation
                )
