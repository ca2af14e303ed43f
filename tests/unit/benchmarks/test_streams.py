"""The benchmarks of the streams: their arithmetic on figures made up here, and one short measurement of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.benchmarks.scripts import load


@pytest.fixture
def samples() -> Any:
    return load("sample_stream")


@pytest.fixture
def parameters() -> Any:
    return load("parameter_stream")


def rates(module: Any, *batches_per_s: float, cpu_us: float = 30.0) -> list[Any]:
    return [module.Rate(cpu_us, one) for one in batches_per_s]


def test_ratios_of_samples_are_taken_within_a_repeat(samples: Any) -> None:
    results = {
        samples._SHARED: rates(samples, 100.0, 1000.0, 300.0, cpu_us=39.0),
        samples._PICKLE: rates(samples, 20.0, 100.0, 100.0),
        samples._ZMQ: rates(samples, 7.9, 7.9, 7.9),
        samples._RAW: rates(samples, 10.0, 10.0, 10.0),
        samples._MEMCPY: rates(samples, 1000.0, 2000.0, 600.0),
    }
    goals = {row[0]: row[1:] for row in samples.goal_rows(results, is_small=True)}
    assert goals[f"{samples._SHARED}: us CPU"] == ["39.0", "39.0 to 39.0", "at most 40", "reached"]
    shared, zmq = (
        goals[f"{name}: throughput / {other}"]
        for name, other in ((samples._SHARED, samples._PICKLE), (samples._ZMQ, samples._RAW))
    )
    assert shared == ["5.00", "3.00 to 10.00", "at least 5", "reached"]
    assert zmq[0] == "0.79" and zmq[-1] == "missed"
    assert len(goals) == 3  # faster-fifo was not measured
    payload = samples.payloads(quick=True)[0]
    figures = {row[0]: row[1:] for row in samples.figure_rows(payload, results)}
    assert figures[samples._SHARED][-1] == "50.0%"


@pytest.mark.parametrize("name", ["hpc_marl, shared memory", "hpc_marl, zmq under CURVE"])
def test_a_batch_is_measured(samples: Any, tmp_path: Path, name: str) -> None:
    payload = samples.payloads(quick=True)[0]
    payload = samples.Payload(payload.name, payload.layout, payload.num_slots, {"others": 20})
    rate = samples.measure(name, payload, tmp_path / "run")
    assert rate.cpu_us > 0 and rate.batches_per_s > 0


def test_parameters_are_measured(parameters: Any, tmp_path: Path) -> None:
    assert parameters.measure_many(tmp_path, 10**6, 2) > 0
    times, copies = parameters.measure_stopped(tmp_path, 10**5, 3)
    assert len(times) == len(copies) == 3 and np.all(np.array([times, copies]) > 0)


def test_a_line_is_judged_or_not(parameters: Any) -> None:
    assert parameters.row("x", [1.0, 3.0, 2.0], "ms") == ["x", "2.00 ms", "1.00 to 3.00", "-", "-", "-"]
    assert parameters.row("x", [1.0], "ms", "1 x", "2 x", "reached")[3:] == ["1 x", "2 x", "reached"]
    assert [parameters.in_words(one) for one in (True, False)] == ["reached", "missed"]
