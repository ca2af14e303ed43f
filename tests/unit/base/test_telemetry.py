"""Metrics never make the training wait, and survive torn lines, full disks and resumed runs."""

from __future__ import annotations

import json
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpc_marl.base import telemetry
from hpc_marl.base.telemetry import METRICS_FILE, MetricsWriter, configure_logging, read_metrics


def write(directory: Path, *rows: dict[str, object], tensorboard: bool = False) -> None:
    with MetricsWriter(directory, tensorboard=tensorboard) as writer:
        for row in rows:
            writer.write(row)
    assert writer.num_dropped == 0


def test_rows_come_back_as_plain_values(tmp_path: Path):
    threads_before = threading.enumerate()
    row = {
        "env_steps": np.int64(7),
        "loss": np.float32(0.5),
        "ratio": float("nan"),
        "phase": "train",
        "x": np.ones(()),
    }
    write(tmp_path / "metrics", row)
    assert read_metrics(tmp_path / "metrics" / METRICS_FILE) == [
        {"env_steps": 7, "loss": 0.5, "ratio": None, "phase": "train", "x": 1.0}
    ]
    assert (tmp_path / "metrics" / METRICS_FILE).stat().st_mode & 0o077 == 0
    assert [thread for thread in threading.enumerate() if thread not in threads_before] == []


def test_what_is_no_number_is_refused_at_once(tmp_path: Path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(TypeError, match="'weights' is a ndarray"):
            writer.write({"weights": np.ones(3)})
        writer.write({"env_steps": 1})
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 1


def test_a_resumed_run_appends_and_replaces_what_it_did_again(tmp_path: Path):
    path = tmp_path / METRICS_FILE
    write(tmp_path, *({"env_steps": steps, "life": 1} for steps in (10, 20, 30)))
    with path.open("ab") as file:
        file.write(b'{"env_steps": 40, "li')
    assert [row["env_steps"] for row in read_metrics(path)] == [10, 20, 30]
    write(tmp_path, *({"env_steps": steps, "life": 2} for steps in (20, 30)))
    assert [json.loads(line)["env_steps"] for line in path.read_text().splitlines()] == [10, 20, 30, 20, 30]
    assert [(row["env_steps"], row["life"]) for row in read_metrics(path)] == [(10, 1), (20, 2), (30, 2)]


def test_reading_passes_over_what_is_no_row(tmp_path: Path):
    assert read_metrics(tmp_path / "none") == []
    (tmp_path / "m").write_bytes(b'{"env_steps": 1}\nnull\n\xff\xfe\n{"env_steps": 2}\n{"env')
    assert read_metrics(tmp_path / "m") == [{"env_steps": 1}, {"env_steps": 2}]


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entered, may_go_on = threading.Event(), threading.Event()
    real = telemetry._cut_torn_line

    def slow_disk(path: Path) -> None:
        entered.set()
        assert may_go_on.wait(10)
        real(path)

    monkeypatch.setattr(telemetry, "_cut_torn_line", slow_disk)
    with MetricsWriter(tmp_path, tensorboard=False, max_rows=2) as writer:
        writer.write({"env_steps": 0})
        assert entered.wait(10)
        for steps in (1, 2, 3, 4):
            writer.write({"env_steps": steps})
        assert writer.num_dropped == 2
        may_go_on.set()
    assert [row["env_steps"] for row in read_metrics(tmp_path / METRICS_FILE)] == [0, 1, 2]


def test_a_failing_disk_does_not_end_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, failures = telemetry._cut_torn_line, iter([OSError(28, "No space left on device")])

    def full_once(path: Path) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        real(path)

    monkeypatch.setattr(telemetry, "_cut_torn_line", full_once)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write({"env_steps": 1})
        writer.write({"env_steps": 2})
    assert writer.num_dropped == 1
    assert read_metrics(tmp_path / METRICS_FILE) == [{"env_steps": 2}]


def event_values(path: Path) -> list[tuple[int, str, float]]:
    """Read an event file: records of length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack_from("<Q", content)
        event = Event.FromString(content[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    return found


def test_tensorboard_gets_the_same_numbers_in_groups(tmp_path: Path):
    row = {"env_steps": 100, "time_s": 1.0, "episode_return": 0.5, "env_steps_per_s": 8.0, "value_loss": 0.25}
    write(tmp_path, row, {**row, "env_steps": 200, "value_loss": None}, tensorboard=True)
    write(tmp_path, {"env_steps": 150, "value_loss": 2.0}, tensorboard=True)
    files = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert len(files) == 2
    values = {value for file in files for value in event_values(file)}
    assert values == {
        (100, "episode/return", 0.5),
        (100, "throughput/env_steps_per_s", 8.0),
        (100, "train/value_loss", 0.25),
        (200, "episode/return", 0.5),
        (200, "throughput/env_steps_per_s", 8.0),
        (150, "train/value_loss", 2.0),
    }


def test_what_was_written_is_in_the_event_file_at_once(tmp_path: Path):
    """A killed trainer loses nothing that its writer had taken."""
    sink = telemetry._TensorBoard(tmp_path, patience_s=0.0)
    sink.write({"env_steps": 10, "entropy": 0.5})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert event_values(path) == [(10, "train/entropy", 0.5)]
    sink.close()


def test_first_rows_wait_for_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The import of tensorboardX does not fall into a training's first seconds."""
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    sink = telemetry._TensorBoard(tmp_path, patience_s=5.0)
    sink.write({"env_steps": 10, "entropy": 0.5})
    now[0] = 104.9
    sink.write({"env_steps": 20, "entropy": 0.25})
    assert not list(tmp_path.iterdir())
    now[0] = 105.0
    sink.write({"env_steps": 30, "entropy": 0.125})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert event_values(path) == [
        (10, "train/entropy", 0.5),
        (20, "train/entropy", 0.25),
        (30, "train/entropy", 0.125),
    ]
    sink.close()


def test_the_event_file_is_framed_as_tensorboard_expects(tmp_path: Path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c

    write(tmp_path, {"env_steps": 7, "entropy": 0.5}, tensorboard=True)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content, events = path.read_bytes(), []
    while content:
        length, length_sum = struct.unpack_from("<QI", content)
        (content_sum,) = struct.unpack_from("<I", content, 12 + length)
        assert length_sum == masked_crc32c(content[:8])
        assert content_sum == masked_crc32c(content[12 : 12 + length])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    first, start, row = events
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (
        7,
        SessionLog.START,
    )  # hides what came after step 7 before
    assert row.step == 7 and row.wall_time >= first.wall_time > 0


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_each_line_of_a_log_names_the_worker(tmp_path: Path, root_logger: logging.Logger):
    path = tmp_path / "logs" / "actor" / "3.0.log"
    configure_logging("actor/3", path)
    logging.getLogger("hpc_marl.test").info("hello %d", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    configure_logging("actor/3", path)
    logging.getLogger("hpc_marl.test").warning("again")
    text = path.read_text()
    assert "actor/3 INFO hpc_marl.test: hello 5" in text and "actor/3 WARNING hpc_marl.test: again" in text
    assert "careful" in text
    assert len(root_logger.handlers) == 1
