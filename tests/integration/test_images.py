"""Agents that see images, in the whole system: actors and policy workers act with torch."""

from __future__ import annotations

import numpy as np

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


def test_vectors_for_a_network_of_images_are_answered(train: Train) -> None:
    run = train("policy=nature_cnn", "trainer.max_restarts=0")
    output = run.finish()
    assert run.process.returncode != 0
    assert "agents see vectors of 1 numbers and no images; use policy=mlp or policy=gru" in output
