"""Agents that see images, in the whole system: actors and policy workers act with torch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.integration.conftest import Train
from tests.integration.test_training import assert_ledger_balances, final_weights

IMAGES = (
    "env.name=bright_side",
    "env.make={_target_:hpc_marl.envs.testing.BrightSide,num_agents:2,side:12}",
    "policy=nature_cnn",
    "policy.conv_channels=[8,8]",
    "policy.conv_kernels=[4,3]",
    "policy.conv_strides=[2,2]",
    "policy.hidden_sizes=[32]",
    "policy.critic_hidden_sizes=[]",
    "algorithm.discount=0.5",
)


def test_images_are_learned_from_alike_inline_and_remote(train: Train) -> None:
    weights = []
    for inference in ("inline", "remote"):
        run = train(*IMAGES, f"inference={inference}", "total_env_steps=8000", f"trial_name={inference}")
        run.finish_well()
        assert run.directory.name == inference
        assert_ledger_balances(run)
        # both agents are right in each of 8 steps, half as often by chance
        assert run.state("evaluation.json")["return_mean"] > 13
        weights.append(final_weights(run))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (
            ("policy=nature_cnn",),
            "agents see vectors of 1 numbers and no images; use policy=mlp or policy=gru",
        ),
        (
            (*IMAGES[:2], "policy=mlp"),
            "x12x12 pixels, and this policy has no convolutions; use policy=nature_cnn",
        ),
        (("policy.hidden_sizes=[10000000,10000000]",), "weights: use smaller layers"),
    ],
)
def test_a_network_that_does_not_fit_ends_the_run_at_once(
    train: Train, overrides: tuple[str, ...], answer: str
) -> None:
    run = train(*overrides)
    output = run.finish()
    assert run.process.returncode != 0
    assert answer in output and "trainer/0 ERROR" in output
    verdict = run.state("state/verdict.json")
    assert verdict["status"] == "ERROR" and "trainer/0" in verdict["reason"] and answer in verdict["reason"]
    assert "Traceback" not in output, "it is in the log, and hpc-marl logs shows it"
    assert [path.name for path in (run.directory / "logs" / "trainer").iterdir()] == ["0.0.log"]
