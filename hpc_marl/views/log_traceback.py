"""The first traceback in the logs of a trial, and where it happened: what one looks for when a run has failed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.views.log_files import LogFile, clock_of, time_of

_MARKER = b"Traceback (most recent call last):"
_CHUNK_BYTES = 4 * 1024 * 1024
_CONTEXT_BYTES = 16 * 1024
_MAX_LINES = 40
_CLOCK_SKEW_S = 60.0
_GOES_ON = re.compile(r"During handling of the above exception|The above exception was the direct cause")


@dataclass(frozen=True)
class FoundTraceback:
    """A traceback in a log.

    Attributes:
        file: the log.
        at: time of the log line before it, as text that sorts.
        lines: from its first line to the exception's.
    """

    file: LogFile
    at: str
    lines: Sequence[str]


def first_traceback(files: Iterable[LogFile]) -> FoundTraceback | None:
    """Return the earliest traceback in these files; None where there is none."""
    found = [traceback for file in files if (traceback := _first_in(file)) is not None]
    return min(found, key=lambda traceback: traceback.at, default=None)


def traceback_text(traceback: FoundTraceback, directory: RunDirectory) -> str:
    """Return the traceback below a line that says whose it is, on which node, in which job and file."""
    file = traceback.file
    node, job_id = _place(traceback, directory)
    where = [
        file.worker + (f" (life {file.life})" if file.life else ""),
        f"on {node}" if node else "",
        f"in job {job_id}" if job_id else "",
        f"at {traceback.at.partition('.')[0]}",
    ]
    title = f"first traceback: {' '.join(part for part in where if part)}, {file.path}"
    return "\n".join([title, *(f"  {line}" for line in traceback.lines)]) + "\n"


def _first_in(file: LogFile) -> FoundTraceback | None:
    try:
        with file.path.open("rb") as stream:
            position = _find(stream)
            if position is None:
                return None
            start = max(0, position - _CONTEXT_BYTES)
            stream.seek(start)
            before, after = stream.read(position - start), stream.read(_CONTEXT_BYTES)
        modified = file.path.stat().st_mtime
    except FileNotFoundError:
        return None
    *earlier, label = before.decode(errors="replace").split("\n")
    times = (found for line in reversed([*earlier, label]) if (found := time_of(line)))
    at = next(times, None) or clock_of(modified)
    return FoundTraceback(file, at, _traceback_lines(after.decode(errors="replace").splitlines(), label))


def _find(stream: BinaryIO) -> int | None:
    """Return where the first traceback begins."""
    offset, rest = 0, b""
    while chunk := stream.read(_CHUNK_BYTES):
        data = rest + chunk
        if (found := data.find(_MARKER)) >= 0:
            return offset - len(rest) + found
        offset += len(chunk)
        rest = data[-len(_MARKER) + 1 :]
    return None


def _traceback_lines(lines: Sequence[str], label: str) -> list[str]:
    """Return the lines up to that of the exception, without the label that srun may have put before each."""
    plain = [line.removeprefix(label) for line in lines]
    last = _end_of_one(plain, 0)
    while (next_one := _next_of_chain(plain, last)) is not None:
        last = _end_of_one(plain, next_one)
    taken = plain[: last + 1]
    if len(taken) > _MAX_LINES:
        # The exception is at the end, what was asked for at the beginning.
        taken = [*taken[:6], f"... {len(taken) - _MAX_LINES} lines ...", *taken[6 - _MAX_LINES :]]
    return taken


def _end_of_one(lines: Sequence[str], start: int) -> int:
    """Return the line of the exception: the first after the header that is not indented."""
    for index in range(start + 1, len(lines)):
        if lines[index] and not lines[index][0].isspace():
            return index
    return len(lines) - 1


def _next_of_chain(lines: Sequence[str], last: int) -> int | None:
    """Return where the traceback of an exception raised by the one above begins."""
    says = [index for index in range(last + 1, min(last + 4, len(lines))) if _GOES_ON.match(lines[index])]
    if not says:
        return None
    marker = _MARKER.decode()
    begins = (i for i in range(says[0], min(says[0] + 4, len(lines))) if lines[i].startswith(marker))
    return next(begins, None)


def _place(traceback: FoundTraceback, directory: RunDirectory) -> tuple[str, str]:
    """Return (node, job id) as far as the host processes wrote them down."""
    file = traceback.file
    hosts = [host for host in _usage(directory) if _is_of(host, file)]
    # Of several lives of a host, the last that had begun when it happened.
    begun = [host for host in hosts if host.get("started", 0.0) <= _unix_time(traceback.at) + _CLOCK_SKEW_S]
    host = max(begun or hosts, key=lambda one: one.get("started", 0.0), default={})
    return str(host.get("node", "")), file.job_id or str(host.get("job_id", ""))


def _is_of(host: dict[str, Any], file: LogFile) -> bool:
    if file.job_id:
        return bool(host.get("job_id") == file.job_id)
    return file.worker in host.get("workers", {}) or file.worker == f"host/{host.get('slot')}"


def _usage(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return what every host process has measured."""
    found = []
    for path in directory.usage.glob("host-*.json"):
        with contextlib.suppress(OSError, ValueError):  # just being replaced, or not ours
            host = json.loads(path.read_bytes())
            if isinstance(host, dict):
                found.append(host)
    return found


def _unix_time(at: str) -> float:
    return datetime.strptime(at.partition(".")[0], "%Y-%m-%d %H:%M:%S").timestamp()
