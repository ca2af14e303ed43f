"""Losses on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hpc_marl.algorithms.losses import clipped_surrogate, value_loss


def test_the_surrogate_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    old = torch.tensor([-1.0, -2.0, -0.5, -0.1, -3.0])
    log_prob = (old + ratio.log()).requires_grad_()
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0])
    weight = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])
    loss, log_ratio = clipped_surrogate(log_prob, old, advantage, weight, clip_eps=0.2)
    # min(1.5, 1.2) * 2, min(-3, -2.4), min(1, 1.6), min(-1, -1.6)
    assert loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6) / 4, abs=1e-6)
    torch.testing.assert_close(log_ratio.detach(), ratio.log())
    loss.backward()
    # no gradient where the clipped branch is the smaller one; elsewhere -weight * ratio * advantage
    expected = torch.tensor([0.0, 0.25 * 3.0, -0.25 * 1.0, 0.0, 0.0])
    torch.testing.assert_close(log_prob.grad, expected)


def test_the_value_loss_by_hand():
    value, target = torch.tensor([1.0, 5.0, 7.0]), torch.tensor([2.0, 2.0, 100.0])
    weight, old = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.5, 3.0, 0.0])
    options = {"form": "mse", "huber_delta": 2.0, "clip_eps": None}
    assert value_loss(value, target, old, weight, **options).item() == pytest.approx(
        0.5 * (0.5 * 1 + 0.5 * 9)
    )
    options["form"] = "huber"  # beyond delta: delta * (|e| - delta / 2) = 2 * (3 - 1)
    assert value_loss(value, target, old, weight, **options).item() == pytest.approx(0.5 * (0.5 * 1 + 4.0))


def test_the_clipped_value_loss_is_the_larger_one():
    target, weight = torch.tensor([0.0]), torch.tensor([1.0])
    options = {"form": "mse", "huber_delta": 1.0, "clip_eps": 0.1}
    better = value_loss(torch.tensor([1.0]), target, torch.tensor([2.0]), weight, **options)
    assert better.item() == pytest.approx(0.5 * 1.9**2), "a step far towards the target counts as a short one"
    worse = value_loss(torch.tensor([3.0]), target, torch.tensor([2.0]), weight, **options)
    assert worse.item() == pytest.approx(0.5 * 3.0**2)


def test_entries_of_no_weight_have_no_gradient():
    log_prob = torch.full((2,), -1.0, requires_grad=True)
    weight = torch.tensor([1.0, 0.0])
    loss, _ = clipped_surrogate(log_prob, torch.tensor([-1.0, 0.0]), torch.ones(2), weight, clip_eps=0.2)
    loss.backward()
    assert log_prob.grad.tolist() == [-1.0, 0.0]
    assert math.isclose(loss.item(), -1.0)
