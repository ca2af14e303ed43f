"""The logs of a trial: which files there are, whose they are, and their lines in order of time.

logs/KIND/INDEX.LIFE.log   one life of one worker
logs/jobs/*.out            what Slurm wrote for a job: kind `job`
logs/*.log                 such as controller.log: kind `controller`
"""

from __future__ import annotations

import heapq
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BLOCK_BYTES = 64 * 1024
_WORKER_LOG = re.compile(r"(?P<index>[^.]+)\.(?P<life>\d+)\.log")
_JOB_ID = re.compile(r"(\d+(?:[_+]\d+)?)$")
_JOBS_DIRECTORY = "jobs"
# At the beginning of a line of ours, maybe after the label that srun gives it. Slurm itself says
# "slurmstepd: error: *** JOB 5 ON cpu1 CANCELLED AT 2026-01-31T12:00:00 ***".
_TIME = re.compile(r"(?:^(?:\d+: )?\W{0,4}|\bAT )(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d+))?")


@dataclass(frozen=True)
class LogFile:
    """One file of a trial's logs.

    Attributes:
        path: where it is.
        worker: whose: `actor/3`, `job/123_4`, `controller`.
        life: which life of the worker.
        job_id: of a job's output; "" otherwise.
    """

    path: Path
    worker: str
    life: int = 0
    job_id: str = ""

    @property
    def kind(self) -> str:
        """The part of the worker's name before the index."""
        return self.worker.partition("/")[0]

    def is_of(self, selection: str) -> bool:
        """Whether `selection` (KIND or KIND/INDEX; of an array of jobs also its number) means this file."""
        return selection in (self.worker, self.kind) or self.worker.startswith(f"{selection}_")


@dataclass(frozen=True, order=True)
class LogLine:
    """One line.

    Attributes:
        at: local time as text that sorts; of a line without one, that of the line before.
        worker: whose.
        text: without the newline.
    """

    at: str
    worker: str
    text: str


def find_log_files(logs: Path, selections: Sequence[str] = ()) -> list[LogFile]:
    """Return the log files below `logs` that any of the selections means; without one, all of them.

    Each directory is opened anew, so that NFS shows files that other machines have made since.
    """
    found = []
    for name, is_directory in _listing(logs):
        if not is_directory and name.endswith(".log"):
            found.append(LogFile(logs / name, name.removesuffix(".log")))
        elif is_directory:
            files = (_log_file(logs / name, entry) for entry, is_dir in _listing(logs / name) if not is_dir)
            found += [file for file in files if file is not None]
    if selections:
        found = [file for file in found if any(file.is_of(selection) for selection in selections)]
    return sorted(found, key=lambda file: (file.worker, file.life))


@dataclass(frozen=True)
class Tail:
    """The end of a file as it was when it was read.

    Attributes:
        lines: the last ones.
        inode: which file it was.
        size: bytes it had.
    """

    lines: Sequence[LogLine] = ()
    inode: int = 0
    size: int = 0


def tail_of(file: LogFile, count: int, pattern: re.Pattern[str] | None = None) -> Tail:
    """Return the last `count` lines of a file, or the last that `pattern` is found in.

    A file that is not there any more has none.
    """
    try:
        with file.path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            start = 0 if pattern else _start_of_last_lines(stream, status.st_size, count)
            stream.seek(start)
            data = stream.read(status.st_size - start)
    except FileNotFoundError:
        return Tail()
    texts = data.decode(errors="replace").splitlines()
    lines = dated_lines(texts, file.worker, clock_of(status.st_mtime))
    kept = (line for line in lines if pattern is None or pattern.search(line.text))
    return Tail(list(deque(kept, maxlen=count)), status.st_ino, start + len(data))


def merged(files: Iterable[Sequence[LogLine]], count: int | None = None) -> list[LogLine]:
    """Return the lines of several files by time, those of one file in its order; the last `count` of them."""
    lines = heapq.merge(*files, key=lambda line: line.at)
    return list(lines if count is None else deque(lines, maxlen=count))


def dated_lines(texts: Iterable[str], worker: str, otherwise: str) -> Iterator[LogLine]:
    """Give each line its time: never before that of the line above, so that a traceback stays together.

    Args:
        texts: the lines.
        worker: whose they are.
        otherwise: the time of lines before the first that says one, where none follows.
    """
    waiting: list[str] = []
    at = ""
    for text in texts:
        if found := time_of(text):
            at = max(at, found)
        if not at:
            waiting.append(text)
            continue
        yield from (LogLine(at, worker, early) for early in waiting)
        waiting = []
        yield LogLine(at, worker, text)
    yield from (LogLine(otherwise, worker, early) for early in waiting)


def time_of(text: str) -> str:
    """Return the time that a line says, as text that sorts; "" if it says none.

    >>> time_of("2026-01-31 12:00:00,123 actor/3 INFO ready"), time_of("Traceback (most recent call last):")
    ('2026-01-31 12:00:00.123', '')
    """
    found = _TIME.search(text)
    if found is None:
        return ""
    day, clock, fraction = found.groups()
    return f"{day} {clock}" + (f".{fraction}" if fraction else "")


def clock_of(unix_time: float) -> str:
    """Return a unix time as log lines write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time))


def _log_file(directory: Path, name: str) -> LogFile | None:
    path = directory / name
    if directory.name == _JOBS_DIRECTORY:
        found = _JOB_ID.search(path.stem)
        return LogFile(path, f"job/{found[1] if found else path.stem}", job_id=found[1] if found else "")
    worker = _WORKER_LOG.fullmatch(name)
    return LogFile(path, f"{directory.name}/{worker['index']}", int(worker["life"])) if worker else None


def _listing(path: Path) -> list[tuple[str, bool]]:
    """Return (name, whether it is a directory)."""
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _start_of_last_lines(stream: BinaryIO, size: int, count: int) -> int:
    """Return where to begin to read at least `count` lines, where the file has so many."""
    position, newlines = size, 0
    while position > 0 and newlines <= count:
        start = max(0, position - _BLOCK_BYTES)
        stream.seek(start)
        newlines += stream.read(position - start).count(b"\n")
        position = start
    return position
