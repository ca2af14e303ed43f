"""CheckpointWriter: writes checkpoints from a thread of its own, so that no update waits for a disk.

submit(step, ...) replaces what has not been begun yet: one write at a time, the newest wins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hpc_marl.base.checkpoints import save_checkpoint
from hpc_marl.base.epoch_fence import EpochFence
from hpc_marl.errors import CheckpointError, FencedError

_log = logging.getLogger(__name__)

Tensors = Mapping[str, Mapping[str, NDArray[Any]]]


class CheckpointWriter:
    """Writes what it is handed; the caller hands over arrays that it will not change any more.

    Args:
        directory: where checkpoints go.
        epoch: the writer's right to write.
        keep: newest checkpoints to keep.
        fence: says whether the writer still has that right; it is asked right before anything becomes visible.

    Attributes:
        last_path: the newest checkpoint written by this writer.
        failures: writes that failed; the checkpoint before stays valid and training goes on.
    """

    def __init__(self, directory: Path, *, epoch: int, keep: int, fence: EpochFence | None = None) -> None:
        self._directory, self._epoch, self._keep = directory, epoch, keep
        self._require_right = (lambda: None) if fence is None else fence.require
        self.last_path: Path | None = None
        self.failures = 0
        self._changed = threading.Condition()
        self._pending: tuple[int, Tensors, Mapping[str, Any]] | None = None
        self._busy = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def submit(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Hand over a checkpoint to be written."""
        with self._changed:
            self._pending = (step, tensors, state)
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when everything submitted has been written, or has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending is None and not self._busy)

    def close(self) -> None:
        """Write what is pending and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                if self._pending is None:
                    return
                (step, tensors, state), self._pending, self._busy = self._pending, None, True
            try:
                self.last_path = save_checkpoint(
                    self._directory,
                    step=step,
                    epoch=self._epoch,
                    tensors=tensors,
                    state=state,
                    keep=self._keep,
                    require_right=self._require_right,
                )
            except FencedError as error:
                _log.warning("checkpoint %d: %s", step, error)
            except CheckpointError as error:
                self.failures += 1
                _log.error("checkpoint %d was not written: %s", step, error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
