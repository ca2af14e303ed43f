"""The whole system on one machine: real worker processes, real sockets, real files."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.integration.conftest import Run, Train


def final_weights(run: Run) -> dict[str, Any]:
    newest = max((run.directory / "checkpoints").glob("step-*"))
    return dict(load_file(newest / "model.safetensors"))


def assert_equal_weights(first: Run, second: Run) -> None:
    ours, theirs = final_weights(first), final_weights(second)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def assert_ledger_balances(run: Run) -> dict[str, Any]:
    """Check the trainer's ledger, and against it what the actors themselves say they produced."""
    ledger: dict[str, Any] = run.state("state/ledger.json")
    assert ledger["in_flight"] == 0
    assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())
    assert ledger["produced_env_steps"] == ledger["consumed_env_steps"] + ledger["dropped_env_steps"]
    told = sum(
        word["metrics"].get("batches_produced", 0)
        for word in run.final_words()
        if "actor" in word["worker_name"]
    )
    assert 0 < told <= ledger["produced"]
    assert ledger["consumed_env_steps"] == run.metrics()[-1]["env_steps"]
    return ledger


@pytest.mark.parametrize(
    ("mode", "inference"), list(itertools.product(["sync", "async"], ["inline", "remote"]))
)
def test_it_learns(train: Train, mode: str, inference: str) -> None:
    run = train(f"mode={mode}", f"inference={inference}", "total_env_steps=20000")
    output = run.finish_well()
    evaluation = run.state("evaluation.json")
    assert evaluation["episodes"] >= 20
    assert evaluation["return_mean"] > 7.0, (
        output
    )  # both agents earn 1 in each of 4 steps; chance is about 1.3
    ledger = assert_ledger_balances(run)
    assert ledger["consumed_env_steps"] >= 20_000
    assert "checkpoints/step-" in output and "metrics" in output
    assert (run.directory / "learning_curve.png").stat().st_size > 10_000


def test_samples_and_parameters_by_zmq(train: Train) -> None:
    run = train("streams.transport=zmq", "total_env_steps=4000")
    run.finish_well()
    assert_ledger_balances(run)


@pytest.mark.parametrize(
    "overrides",
    [
        # Masked actions (taking one raises), agents that end early, a global state; recurrent, remote.
        (
            "env.make={_target_:hpc_marl.envs.testing.CountingEnv,masked:true,early_steps:1,has_state:true}",
            "policy=gru",
            "inference=remote",
        ),
        (
            "env=pendulum",
            "algorithm=ippo",
            "policy=gru",
            "mode=async",
            "algorithm.off_policy_correction=decoupled",
        ),
        ("env=mpe_speaker_listener", "algorithm=mappo", "actors.num_groups=2", "inference=remote"),
    ],
    ids=["masks-early-ends-gru", "continuous-gru-decoupled", "different-spaces"],
)
def test_every_kind_of_environment_and_policy_runs(train: Train, overrides: tuple[str, ...]) -> None:
    run = train(*overrides, "policy.memory_size=8", "total_env_steps=3000", "evaluation.episodes=4")
    run.finish_well()
    assert np.isfinite(run.state("evaluation.json")["return_mean"])
    assert_ledger_balances(run)
    assert {row["skipped_updates"] for row in run.metrics()} == {0.0}


def test_synchronous_runs_are_bit_reproducible_inline_and_remote(train: Train) -> None:
    common = ("total_env_steps=4000", "actors.num_groups=2", "experiment_name=same")
    runs = []
    for number, further in enumerate((("inference=inline",), ("inference=inline",), ("inference=remote",))):
        run = train(*common, *further, f"trial_name=t{number}")
        run.finish_well()
        runs.append((run, run.directory))
    weights = [
        load_file(max((path / "checkpoints").glob("step-*")) / "model.safetensors") for _, path in runs
    ]
    for other in weights[1:]:
        for name, array in weights[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)
    other_seed = train(*common, "seed=2", "trial_name=t3")
    other_seed.finish_well()
    assert any((array != final_weights(other_seed)[name]).any() for name, array in weights[0].items())
