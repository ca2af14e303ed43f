"""TimeUse: all of the time goes to exactly one activity at a time."""

from __future__ import annotations

import pytest

from hpc_marl.base import time_use
from hpc_marl.base.time_use import CPU_METRIC, TimeUse, seconds_by_activity


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time_use, "perf_counter", lambda: now[0])
    return now


def test_time_goes_to_the_activity_that_was_begun_last(clock):
    used = TimeUse("other", "env")
    clock[0] += 1
    used.begin("env")
    clock[0] += 2
    used.begin("other")
    clock[0] += 4
    assert used.seconds() == {"other": 5.0, "env": 2.0}


def test_reading_counts_the_running_activity_and_goes_on(clock):
    used = TimeUse("other", "env")
    clock[0] += 1
    assert used.seconds() == {"other": 1.0, "env": 0.0}
    clock[0] += 1
    assert used.seconds()["other"] == 2.0


def test_metrics_can_be_read_back_from_among_others(clock):
    used = TimeUse("wait_credit", "env")
    clock[0] += 3
    metrics = {**used.metrics(), "train_time_s": 9.0, "rows": 1}
    assert seconds_by_activity(metrics) == {"wait_credit": 3.0, "env": 0.0}


def test_metrics_say_how_much_cpu_the_process_has_used(clock):
    metrics = TimeUse("env").metrics()
    assert 0 < metrics[CPU_METRIC] <= TimeUse("env").metrics()[CPU_METRIC]


def test_an_activity_that_was_not_named_is_refused(clock):
    with pytest.raises(KeyError, match="'fly' is not among the activities env, write"):
        TimeUse("env", "write").begin("fly")
