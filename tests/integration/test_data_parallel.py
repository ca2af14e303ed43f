"""Two trainers learn one policy: real processes, through the local launcher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.integration.conftest import Run, Train
from tests.integration.test_training import assert_ledger_balances, final_weights

TWO = (
    "env=cartpole",
    "policy=mlp",
    "trainer.count=2",
    "actors.count=2",
    "actors.num_envs=4",
    "algorithm.rollout_length=32",
    "evaluation.episodes=4",
)


def trainer_metrics(run: Run) -> list[dict[str, Any]]:
    """Return what the trainers counted at their end, by rank."""
    words = {word["worker_name"]: word for word in run.final_words()}
    return [words[f"trainer/{rank}"]["metrics"] for rank in range(2)]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_two_trainers_train(train: Train, mode: str) -> None:
    run = train(*TWO, f"mode={mode}", "total_env_steps=4000")
    run.finish_well()
    evaluation = run.state("evaluation.json")
    assert np.isfinite(evaluation["return_mean"])
    assert {row["skipped_updates"] for row in run.metrics()} == {0.0}
    ledger = assert_ledger_balances(run)
    first, second = trainer_metrics(run)
    assert first["env_steps"] == second["env_steps"] == ledger["consumed_env_steps"] >= 4000
    assert first["policy_version"] == second["policy_version"]
    assert ledger["consumed"] == 2 * first["policy_version"]  # one batch of each actor
    assert first["batches_produced"] >= ledger["consumed"]


def test_a_checkpoint_of_two_trainers_is_gone_on_from_by_one_and_by_three(train: Train) -> None:
    steps = 2000
    train(*TWO, "trial_name=t", f"total_env_steps={steps}").finish_well()
    for count in (1, 3):
        steps += 2000
        resumed = train(
            *TWO,
            "trial_name=t",
            "resume=true",
            f"trainer.count={count}",
            "actors.count=3",
            f"total_env_steps={steps}",
        )
        resumed.finish_well()
        ledger = resumed.state("state/ledger.json")
        assert ledger["in_flight"] == 0
        assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())
        assert ledger["consumed_env_steps"] == resumed.metrics()[-1]["env_steps"] >= steps


def test_two_synchronous_trainers_are_bit_reproducible(train: Train) -> None:
    runs = []
    for number in range(2):
        run = train(*TWO, "total_env_steps=2000", "experiment_name=same", f"trial_name=t{number}")
        run.finish_well()
        runs.append((run, run.directory))
    first, second = (
        load_file(max((path / "checkpoints").glob("step-*")) / "model.safetensors") for _, path in runs
    )
    assert first.keys() == second.keys() == final_weights(runs[1][0]).keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
