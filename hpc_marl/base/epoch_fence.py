"""EpochFence: keeps a trainer that was replaced from writing anything more.

    controller   state/epoch := e + 1, then launches the trainers of epoch e + 1
    trainer      before each write: state/epoch > e?  then it ends and writes nothing

A replaced trainer may still run: its node had lost touch with the cluster, or Slurm has requeued the job without
ending the first copy, and both see the shared file system. The file is looked at as late as can be before each write.
What a process writes between its look and the controller's next word has the lower epoch in its name, and loses to
every checkpoint of its successor.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from hpc_marl.base.durable_files import atomic_write
from hpc_marl.errors import FencedError

_log = logging.getLogger(__name__)

_STALE_TRIALS = 5


class EpochFence:
    """Tells one process whether its epoch still has the right to write. Several threads may ask.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "epoch"
        ...     fence = EpochFence(path, 3)
        ...     before = fence.holds()
        ...     write_epoch(path, 4)
        ...     before, fence.holds()
        (True, False)

    Args:
        path: the file with the newest epoch.
        epoch: of this process.
        clock: monotonic seconds.
    """

    def __init__(self, path: Path, epoch: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._epoch, self._clock = path, epoch, clock
        self._is_fenced = False
        self._looked_s = -float("inf")

    def holds(self, max_age_s: float = 0.0) -> bool:
        """Whether this process may write; once it may not, it never may again.

        Args:
            max_age_s: be content with a look that was that long ago; 0 looks now.
        """
        now = self._clock()
        if not self._is_fenced and now - self._looked_s >= max_age_s:
            newest = read_epoch(self._path)
            self._looked_s = now
            if newest is not None and newest > self._epoch:
                self._is_fenced = True
                _log.warning(
                    "epoch %d has begun: this process, of epoch %d, was replaced and writes nothing more",
                    newest,
                    self._epoch,
                )
        return not self._is_fenced

    def require(self) -> None:
        """Return if this process may write. Raises FencedError."""
        if not self.holds():
            raise FencedError(
                f"{self._path} says that a newer epoch than {self._epoch} has begun; its processes write now"
            )


def read_epoch(path: Path) -> int | None:
    """Return the newest epoch, None where none was written yet.

    Opens the file, which a network file system answers with what is there now; `stat` may be a minute late.

    Raises:
        OSError: the file system does not answer.
        FencedError: the file does not hold a number, so nobody can tell who may write.
    """
    for trial in range(_STALE_TRIALS):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            if trial:
                return None
            _refresh_directory(path.parent)
            continue
        except OSError as error:
            if error.errno != errno.ESTALE:  # replaced on another machine while we were opening it
                raise
            continue
        try:
            return int(text)
        except ValueError:
            raise FencedError(f"{path} holds {text[:40]!r}; expected the number of an epoch") from None
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))


def write_epoch(path: Path, epoch: int) -> None:
    """Make `epoch` the newest; from now on no process of a lower one writes.

    Raises:
        OSError: the disk is full or the directory is missing.
    """
    atomic_write(path, f"{epoch}\n".encode())


def _refresh_directory(path: Path) -> None:
    """Have a network file system look again for names that it remembers as absent: opening does that."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except FileNotFoundError:
        return
