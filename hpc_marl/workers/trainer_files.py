"""What trainer/0 leaves on disk: rows of metrics, checkpoints, and the ledger. Writing never makes an update wait."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_marl.base.checkpoint_writer import CheckpointWriter
from hpc_marl.base.checkpoints import latest_checkpoint
from hpc_marl.base.epoch_fence import EpochFence
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.base.telemetry import MetricsWriter
from hpc_marl.config import TrainerAssignment, to_dict
from hpc_marl.policies.spec import PolicySpec
from hpc_marl.workers.progress import ProgressMeter
from hpc_marl.workers.trainer_words import AllLedgers


class TrainerFiles:
    """Writes metrics and checkpoints from threads of their own, until they are closed.

    Args:
        directory: of the trial.
        config: the trainer's part of the experiment.
        spec: of the policy; a checkpoint says whose weights it holds.
        fence: says whether this trainer may still write.
    """

    def __init__(
        self, directory: RunDirectory, config: TrainerAssignment, spec: PolicySpec, fence: EpochFence
    ) -> None:
        self._directory, self._config, self._spec = directory, config, spec
        self._metrics = MetricsWriter(directory.metrics)
        self._checkpoints = CheckpointWriter(
            directory.checkpoints, epoch=config.epoch, keep=config.trainer.keep_checkpoints, fence=fence
        )
        self._last_checkpoint_s = time.monotonic()

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest one that this trainer has written."""
        return self._checkpoints.last_path

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether the newest checkpoint is as old as it may get."""
        age_s = time.monotonic() - self._last_checkpoint_s
        return age_s >= self._config.trainer.checkpoint_interval_s

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Hand over the metrics of one update."""
        self._metrics.write(row)

    def write_checkpoint(
        self, policy_version: int, algorithm: Any, progress: ProgressMeter, ledgers: AllLedgers, *, wait: bool
    ) -> None:
        """Hand over all that training goes on from, as it is now.

        Args:
            policy_version: of the weights.
            algorithm: with `state_dict()`, as PPO has.
            progress: what was counted.
            ledgers: what became of the batches.
            wait: return when it is on disk.
        """
        tensors, scalars = algorithm.state_dict()
        state = {
            "algorithm": scalars,
            "policy_spec": to_dict(self._spec),
            "progress": progress.to_dict(),
            "ledgers": ledgers.to_list(),
            "total_env_steps": self._config.total_env_steps,
        }
        self._checkpoints.submit(policy_version, tensors, state)
        self._last_checkpoint_s = time.monotonic()
        if wait:
            self._checkpoints.wait()

    def write_ledger(self, ledgers: AllLedgers) -> None:
        """Leave state/ledger.json: what became of every batch of the trial."""
        totals = ledgers.merged().balance()
        plain = {**vars(totals), "dropped": dict(totals.dropped)}
        atomic_write(self._directory.ledger_file, json.dumps(plain, indent=1).encode())

    def close_checkpoints(self) -> None:
        """Write the checkpoint that is pending, and no other."""
        self._checkpoints.close()

    def close(self) -> None:
        """Write the rows that are pending."""
        self._metrics.close()


def saved_training(directory: RunDirectory) -> dict[str, Any] | None:
    """Return the newest checkpoint as plain values: step, state, tensors of `model` and `optim`; None without one."""
    found = latest_checkpoint(directory.checkpoints)
    if found is None:
        return None
    tensors = {"model": found.tensors("model"), "optim": found.tensors("optim")}
    return {"step": found.step, "state": dict(found.state), "tensors": tensors}
