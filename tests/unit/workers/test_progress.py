"""What the trainer counts survives a restart; its rates do not."""

from __future__ import annotations

import pytest

from hpc_marl.workers.progress import ProgressMeter
from tests.unit.workers.test_batch_selection import received


def test_counts_are_those_of_the_metadata_and_survive_a_restart() -> None:
    meter = ProgressMeter()
    meter.count(
        [received("actor/0").metadata, received("actor/1").metadata], policy_version=1, policy_lag=0.5
    )
    assert (meter.env_steps, meter.agent_steps, meter.row()["policy_lag"]) == (4, 4, 0.5)
    state = meter.to_dict()
    restored = ProgressMeter.restored(state)
    assert restored.env_steps == 4 and restored.train_time_s >= state["train_time_s"] > 0
    assert restored.summary()["env_steps_per_s"] == 0.0


def test_returns_are_reported_only_where_episodes_ended() -> None:
    meter = ProgressMeter()
    meter.count([received("actor/0").metadata], policy_version=1, policy_lag=0.0)
    assert "episode_return" not in meter.row() and "return_mean" not in meter.summary()
    batch = received("actor/0")
    batch.metadata.episodes.extend([(1.0, 10), (2.0, 20)])
    meter.count([batch.metadata], policy_version=2, policy_lag=0.0)
    assert meter.row()["episode_return"] == pytest.approx(1.5)
    assert meter.row()["episode_length"] == pytest.approx(15.0)
    assert meter.summary()["return_mean"] == pytest.approx(1.5)
