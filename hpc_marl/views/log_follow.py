"""What is added to the logs of a trial, poll by poll: new lines, new files, and files that were begun anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_marl.views.log_files import LogFile, LogLine, Tail, clock_of, dated_lines, find_log_files, merged

_MIN_INTERVAL_S = 0.5
_FILES_PER_S = 200


@dataclass
class _Position:
    """How far one file was read.

    Attributes:
        inode: which file it was; another one of the same name was begun anew.
        offset: bytes read.
        rest: the beginning of a line whose end is not written yet.
        at: time of the last line.
    """

    inode: int = 0
    offset: int = 0
    rest: bytes = b""
    at: str = ""


class LogFollower:
    """Reads what is new in the log files of a trial.

    Args:
        logs: directory of the logs.
        selections: which workers' files, as for `find_log_files`.

    Attributes:
        files: those that the last poll saw.
    """

    def __init__(self, logs: Path, selections: Sequence[str] = ()) -> None:
        self.files: list[LogFile] = []
        self._logs, self._selections = logs, selections
        self._positions: dict[Path, _Position] = {}

    @property
    def interval_s(self) -> float:
        """How long to wait between two polls: every file is opened in each, so many files are asked less often."""
        return max(_MIN_INTERVAL_S, len(self.files) / _FILES_PER_S)

    def begin_after(self, file: LogFile, tail: Tail) -> None:
        """Begin with what follows the end of a file that was shown already."""
        at = tail.lines[-1].at if tail.lines else ""
        self._positions[file.path] = _Position(tail.inode, tail.size, at=at)

    def poll(self) -> list[LogLine]:
        """Return the lines that were completed since the last poll, by time."""
        self.files = find_log_files(self._logs, self._selections)
        return merged([self._new_lines(file) for file in self.files])

    def _new_lines(self, file: LogFile) -> list[LogLine]:
        position = self._positions.setdefault(file.path, _Position())
        try:
            # Opened anew: NFS asks the server for the size only then.
            with file.path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if position.inode != status.st_ino or status.st_size < position.offset:
                    position.inode, position.offset, position.rest = status.st_ino, 0, b""
                stream.seek(position.offset)
                data = stream.read()
        except FileNotFoundError:
            return []
        position.offset += len(data)
        *complete, position.rest = (position.rest + data).split(b"\n")
        texts = [raw.decode(errors="replace").rstrip("\r") for raw in complete]
        lines = list(dated_lines(texts, file.worker, position.at or clock_of(status.st_mtime)))
        if lines:
            position.at = lines[-1].at
        return lines
