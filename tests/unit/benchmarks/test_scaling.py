"""The scaling model's arithmetic, and the table of benchmarks/scaling.py, on figures made up here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.unit.benchmarks.scripts import load


@pytest.fixture
def model() -> Any:
    return load("measuring.scaling_model")


@pytest.fixture
def scaling() -> Any:
    return load("scaling")


def costs(model: Any, **changes: float) -> Any:
    values = {
        **{"receive_bytes_per_s": 1e9, "send_bytes_per_s": 1e9, "receive_cpu_s": 1e-4, "learn_s": 1e-7},
        **{"heartbeat_cpu_s": 1e-4, "heartbeats_per_s": 100, "file_operations_per_worker_s": 0.001},
        **{"file_operations_per_host_s": 0.1, "file_operations_per_s": 1000},
    }
    return model.Costs(**{**values, **changes})


def cluster(model: Any) -> Any:
    return model.Cluster(
        actors=1000,
        trainers=2,
        actors_per_node=50,
        env_steps_per_s=1000,
        bytes_per_env_step=100,
        env_steps_per_batch=1000,
        parameter_bytes=1e6,
        updates_per_s=1,
    )


def test_loads_are_demand_over_capacity_the_largest_first(model):
    found = model.loads(cluster(model), costs(model))
    shares = [load.share for load in found]
    assert shares == sorted(shares, reverse=True)
    assert found[0].part == "parameters out of one trainer"
    by_part = {load.part: load for load in found}
    assert by_part["parameters out of one trainer"].demand == 500  # MB/s: 500 actors x 1 MB x 1 per s
    assert by_part["samples into one trainer"].demand == pytest.approx(50)  # MB/s: 500 x 1000 x 100 B
    assert by_part["taking batches in, one trainer"].demand == pytest.approx(0.05)  # 500 batches/s
    assert by_part["the shared file system"].demand == pytest.approx(1.002 + 2.2)  # 1002 workers, 22 hosts


def test_what_is_slower_becomes_the_first_bottleneck(model):
    slow_disk = model.loads(cluster(model), costs(model, file_operations_per_s=1))
    assert model.first_bottleneck(slow_disk).part == "the shared file system"
    slow_learner = model.loads(cluster(model), costs(model, learn_s=1e-5))
    assert model.first_bottleneck(slow_learner).part == "learning, one trainer"


def test_the_table_judges_only_runs_whose_cores_are_not_full(scaling):
    runs = [
        scaling.Measured(1, 900.0, {"actor": 0.1, "trainer": 0.05}),
        scaling.Measured(4, 3500.0, {"actor": 0.4, "trainer": 0.1}),
        scaling.Measured(8, 5000.0, {"actor": 0.8, "trainer": 0.2}),
        scaling.Measured(32, 12000.0, {"actor": 1.7, "trainer": 0.3}),
    ]
    verdicts = [row[3] for row in scaling.table_rows(runs, num_cores=2)]
    assert verdicts == ["reached", "reached", "missed", "cores are full"]


def test_the_model_takes_the_cost_of_the_largest_run_that_left_cores_free(scaling):
    free = scaling.Measured(
        2, 2000.0, {"actor": 0.2}
    )  # 100 us per env_step: 2 cores carry 20 000 env_steps/s
    full = scaling.Measured(64, 18_000.0, {"actor": 2.0})
    rows = scaling.table_rows([dataclasses.replace(free, actors=1, env_steps_per_s=1000.0), free, full], 2)
    assert rows[-1][-2:] == ["20,000", "0.90"]
