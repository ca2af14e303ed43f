"""Logs with the worker's name on each line, and metrics that never make the training wait.

    write(row) -> bounded queue -> thread -> metrics.jsonl + TensorBoard events

`write` only puts the row into the queue; where the disk is so slow that the queue is full, rows are dropped
and counted. A resumed run appends to both.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import queue
import socket
import struct
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"

_log = logging.getLogger(__name__)

_QUEUE_ROWS = 1000
_CLOSE_TIMEOUT_S = 10.0
_TENSORBOARD_PATIENCE_S = 5.0
_NOT_PLOTTED = ("env_steps", "time_s")
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def configure_logging(worker_name: str, log_file: str | Path | None) -> None:
    """Send this process's log records, and Python's warnings, to a file; each line names the worker.

    Args:
        worker_name: such as `actor/3`.
        log_file: appended to; its directory is made where missing. None: standard error.
    """
    handler: logging.Handler = logging.StreamHandler()
    if log_file is not None:
        Path(log_file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.FileHandler(log_file)
    name = worker_name.replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class MetricsWriter:
    """Writes rows of metrics from a thread of its own; a context manager.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with MetricsWriter(directory, tensorboard=False) as writer:
    ...         writer.write({"env_steps": 100, "episode_return": 0.5})
    ...     read_metrics(Path(directory) / METRICS_FILE)
    [{'env_steps': 100, 'episode_return': 0.5}]

    Args:
        directory: where metrics.jsonl and the event files go; made where missing.
        tensorboard: write TensorBoard events, too; a row's `env_steps` is the step of its values.
        max_rows: rows that may wait to be written.

    Attributes:
        num_dropped: rows that were not written because the queue was full or the disk refused.
    """

    def __init__(
        self, directory: str | Path, *, tensorboard: bool = True, max_rows: int = _QUEUE_ROWS
    ) -> None:
        self.num_dropped = 0
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tensorboard = tensorboard
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(max_rows)
        self._thread = threading.Thread(target=self._run, name="metrics-writer", daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        """Hand over one row, numbers and texts by name, and return at once.

        Raises:
            TypeError: a value is no number or text.
        """
        plain = {name: _plain(name, value) for name, value in row.items()}
        try:
            self._queue.put_nowait(plain)
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        """Write what is waiting and end the thread; gives up on a disk that does not answer."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=_CLOSE_TIMEOUT_S)
        except queue.Full:
            _log.warning("metrics: the disk does not answer; %d rows are lost", self._queue.qsize())
            return
        self._thread.join(_CLOSE_TIMEOUT_S)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        sinks: list[_JsonLines | _TensorBoard] = [_JsonLines(self._directory / METRICS_FILE)]
        if self._tensorboard:
            sinks.append(_TensorBoard(self._directory))
        while (row := self._queue.get()) is not None:
            for sink in sinks:
                try:
                    sink.write(row)
                except OSError as error:
                    # A full disk must not end the training; the next row may find room again.
                    self.num_dropped += 1
                    _log.warning("metrics: a row was not written: %s", error)
        for sink in sinks:
            try:
                sink.close()
            except OSError as error:
                self.num_dropped += 1
                _log.warning("metrics: the last rows were not written: %s", error)


class _JsonLines:
    """One JSON object a line, appended; a line torn by a dead writer or a full disk is cut off."""

    def __init__(self, path: Path) -> None:
        self._file = _AppendedFile(path)

    def write(self, row: Mapping[str, Any]) -> None:
        if not self._file.is_open:
            _cut_torn_line(self._file.path)
        self._file.append((json.dumps(row) + "\n").encode())

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    """Event files; begun with the first row, whose step hides what an earlier life wrote beyond it.

    A row is one event with many values, framed and written here: tensorboardX's own writer makes an event of every
    value, and hands it on to two threads and through a pipe, for ten times the CPU time. From its first write on,
    what is written is in the file at once, so a killed trainer loses nothing of it.

    Args:
        directory: of the files.
        patience_s: for how long first rows wait. The import of tensorboardX takes the interpreter for longer than a
            short training takes to learn, and learning begins just then.
    """

    def __init__(self, directory: Path, patience_s: float = _TENSORBOARD_PATIENCE_S) -> None:
        self._directory = directory
        self._file: _AppendedFile | None = None
        self._waiting: list[tuple[float, Mapping[str, Any]]] = []
        self._waits_until_s = time.monotonic() + patience_s

    def write(self, row: Mapping[str, Any]) -> None:
        self._waiting.append((time.time(), row))
        if time.monotonic() >= self._waits_until_s:
            self._write_waiting()

    def close(self) -> None:
        self._write_waiting()
        if self._file is not None:
            self._file.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            # taken first: a row that the disk refuses is not tried again
            self._write(*self._waiting.pop(0))

    def _write(self, wall_time: float, row: Mapping[str, Any]) -> None:
        # Imports torch where it is installed, so only the process that trains may come here.
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        step = int(row.get("env_steps") or 0)
        if self._file is None or not self._file.is_open:
            self._file = _AppendedFile(self._directory / _event_file_name())
            start = SessionLog(status=SessionLog.START)
            self._append(Event(wall_time=wall_time, file_version="brain.Event:2"))
            self._append(Event(wall_time=wall_time, step=step, session_log=start))
        event = Event(wall_time=wall_time, step=step)
        for name, value in row.items():
            if isinstance(value, (int, float)) and name not in _NOT_PLOTTED:
                event.summary.value.add(tag=_tag(name), simple_value=value)
        self._append(event)

    def _append(self, event: Any) -> None:
        """Append one record of a TFRecord file: length, checksum, content, checksum."""
        from tensorboardX.record_writer import masked_crc32c

        assert self._file is not None
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.append(b"".join((length, checksums[0], content, checksums[1])))


class _AppendedFile:
    """A file that grows by whole pieces; after a piece that did not fit it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_open(self) -> bool:
        return self._descriptor is not None

    def append(self, piece: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, _APPEND, 0o600)
        if os.write(self._descriptor, piece) != len(piece):
            self.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, oldest first; none where there is no file.

    A torn last line, as a killed writer leaves behind, is passed over. Of a resumed run, rows of steps that
    were taken again are replaced by the later ones, so that `env_steps` only grows.
    """
    rows: list[dict[str, Any]] = []
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return rows
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        while rows and rows[-1].get("env_steps", 0) >= row.get("env_steps", math.inf):
            rows.pop()
        rows.append(row)
    return rows


def _plain(name: str, value: Any) -> Any:
    """Return a number or text as JSON knows it; NaN and infinity, which it does not, as None."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    item = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if item is not None and not isinstance(item, (int, float, str)):
        raise TypeError(f"metric {name!r} is a {type(value).__name__}; a metric is a number or a text")
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _tag(name: str) -> str:
    """Return the name under which TensorBoard groups a metric: episode/, throughput/ or train/."""
    if name.startswith("episode_"):
        return f"episode/{name.removeprefix('episode_')}"
    if name.endswith("_per_s"):
        return f"throughput/{name}"
    return f"train/{name}"


def _event_file_name() -> str:
    """Return a name that TensorBoard knows; two lives that begin within one second must not have the same."""
    return f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"


def _cut_torn_line(path: Path) -> None:
    try:
        with path.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
    except FileNotFoundError:
        return
