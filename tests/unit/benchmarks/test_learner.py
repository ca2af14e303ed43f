"""The benchmarks of the learner: the peer is a fair one, and the tables say what was measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hpc_marl.algorithms.ppo import PPO
from hpc_marl.config import PolicyConfig, PPOConfig
from hpc_marl.data import EnvSpec
from hpc_marl.policies import PolicySpec
from tests.unit.benchmarks.scripts import load


def test_the_peer_learns_what_we_learn() -> None:
    """From the same weights and the same batch, in one minibatch, whose order makes no difference."""
    config = PPOConfig(
        num_epochs=3,
        num_minibatches=1,
        value_normalization="none",
        anneal_learning_rate=False,
        learning_rate=0.01,
    )
    spec = PolicySpec(env=EnvSpec(observation_size=4, num_actions=2), policy=PolicyConfig())
    ours, peer = PPO(config, spec, total_env_steps=1), load("measuring.common_ppo").CommonPPO(config, 4, 2)
    critic = ours.model.critic
    assert critic.first_bias is not None
    pairs = [
        *zip(ours.model.actor.parameters(), peer.actor.parameters(), strict=True),
        *zip(
            [critic.own_weight, critic.first_bias, *critic.hidden.parameters(), *critic.head.parameters()],
            peer.critic.parameters(),
            strict=True,
        ),
    ]
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    before = [own.detach().clone() for own, _ in pairs]
    batch = load("ppo_update").make_batch(64, 64)
    ours.update(batch, 0)
    peer.update(batch)
    for own, other, old in zip(*zip(*pairs, strict=True), before, strict=True):
        assert not torch.equal(own, old)
        # the peer divides by the deviation of a sample, we by that of the batch
        np.testing.assert_allclose(own.detach(), other.detach(), rtol=0.02, atol=2e-4)


def test_updates_are_measured_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    module = load("ppo_update")
    found = module.timed_us(module.minibatch_ways(64, 2), 2, 2, 0.001)
    text = module.table(found, 1e9)
    assert list(found) == [module.COMMON, module.AUTOGRAD, module.BY_HAND, module.LIMIT]
    assert all(value > 0 for values in found.values() for value in values)
    assert text.count("reached") == 1 and "missed" in module.table(found, 0.0)
    whole = module.timed_us(module.update_ways(8, 8, 32), 1, 256, 0.001)
    assert list(whole) == [module.COMMON, module.AUTOGRAD, module.BY_HAND]
    assert "to the limit" not in module.table(whole, None)


def test_something_that_is_not_learned_from_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="not learned from"):
        load("measuring.common_ppo").require_all_learned({"skipped_minibatches": 1.0})


def test_updates_on_images_take_turns_in_processes_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, measured = load("image_update"), []
    for name in (module.COMMON, "hpc_marl, small_cnn, bf16"):
        assert module.measure_here(name, 1) > 0
    monkeypatch.setattr(module, "measure", lambda name, num_envs: measured.append(name) or len(measured))
    assert module.main(["--repeats", "2"]) == 0
    assert measured == 2 * list(module.WAYS)
    assert "| common eager, Nature CNN" in capsys.readouterr().out


def test_a_machine_without_a_gpu_says_so_and_checks_results_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("gpu_learner")
    small = [dataclasses.replace(task, num_steps=16, num_envs=1) for task in module.tasks(quick=True)[::2]]
    monkeypatch.setattr(module, "tasks", lambda quick: small)
    assert module.main(["--device", "cpu", "--quick"]) == 0
    printed = capsys.readouterr().out
    for name in ("ours, tf32", "ours, float32, graph", "ours, bf16, graph"):
        lines = [line for line in printed.splitlines() if line.startswith(f"| {name} ")]
        assert len(lines) == 2 and all("needs a GPU" in line for line in lines)
    assert "all passed" in printed and "hpc-marl train experiment=pong_ppo" in printed


@pytest.mark.parametrize("options", [[], ["--device", "cuda"], ["--device", "cuda:1"]])
def test_a_gpu_is_found_with_and_without_its_number(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("gpu_learner")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU of the test's")
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda index: None, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(module, "tasks", lambda quick: [])
    assert module.main(options) == 0
    assert "a GPU of the test's" in capsys.readouterr().out


def test_wrong_results_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("gpu_learner")
    task = dataclasses.replace(module.tasks(quick=True)[0], num_steps=16, num_envs=2)
    assert module.checks_of(task, "cpu") == []
    monkeypatch.setitem(module.WAYS, "ours, bf16", {"seed": 5})
    faults = module.checks_of(task, "cpu")
    assert any("ours, bf16 learns in another direction" in fault for fault in faults)


def test_what_a_device_did_is_counted_once() -> None:
    module = load("measuring.device_timeline")
    kernels, copies = [(0.0, 2.0), (1.0, 4.0), (8.0, 9.0)], [(3.0, 5.0), (8.5, 8.75)]
    timeline = module.DeviceTimeline(10.0, kernels, copies)
    assert module.merged([*kernels, *copies]) == [(0.0, 5.0), (8.0, 9.0)]
    assert timeline.busy_share == 0.6 and timeline.overlap_share == pytest.approx(1.25 / 2.25)
    assert module.DeviceTimeline(10.0, kernels, []).overlap_share is None
    assert module.DeviceTimeline(10.0, [], copies).busy_share is None


def test_the_common_way_learns_from_images() -> None:
    module = load("gpu_learner")
    task = dataclasses.replace(module.tasks(quick=True)[1], num_steps=4, num_envs=2)
    peer = load("measuring.common_ppo").CommonPPO(
        PPOConfig(num_epochs=1, num_minibatches=2), task.env.observation_size, 6, image_shape=(4, 84, 84)
    )
    before = peer._trunk[0].weight.detach().clone()
    peer.update(module.make_batch(task, 0))
    assert not torch.equal(before, peer._trunk[0].weight)


def test_scaling_is_reported_beside_one_process() -> None:
    def turns(microseconds: float, exchange: float) -> list[dict[str, float]]:
        return [{"us": microseconds, "exchange": exchange}] * 3

    found = {
        ("by hand", 1): turns(2.0, 0.0),
        ("by hand", 2): turns(1.1, 0.2),
        ("autograd", 1): turns(8.0, 0.0),
        ("autograd", 2): turns(5.0, 0.1),
    }
    lines = load("data_parallel").report(found).splitlines()
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| by hand, 2")
    ]
    assert cells[0][3] == "0.55" and cells[0][-1] == "reached"
    assert cells[1][1:] == ["909,091", "20%"]
