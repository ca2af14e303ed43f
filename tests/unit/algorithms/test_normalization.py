"""Running moments, and PopArt's exact correction of the output layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hpc_marl.algorithms.normalization import RunningMoments, rescale_head


def test_moments_of_a_steady_stream_are_right_from_the_start():
    moments, rng = RunningMoments(), np.random.default_rng(0)
    assert (moments.mean, moments.std) == (0.0, 1.0)
    for num_updates in range(1, 300):
        moments.update(rng.normal(7.0, 3.0, size=2000).astype(np.float32))
        if num_updates in (1, 10, 299):
            assert moments.mean == pytest.approx(7.0, abs=0.3)
            assert moments.std == pytest.approx(3.0, abs=0.3)


def test_moments_follow_a_stream_that_moves():
    moments = RunningMoments()
    for level in (0.0, 50.0):
        for _ in range(700):
            moments.update(np.array([level - 1, level + 1]))
    assert moments.mean == pytest.approx(50.0, abs=0.1)
    assert moments.std == pytest.approx(1.0, abs=1.0)


def test_normalising_is_undone_exactly_enough():
    moments = RunningMoments()
    values = np.array([3.0, -5.0, 400.0], np.float32)
    moments.update(values)
    normalized = moments.normalize(values)
    assert normalized.dtype == np.float32
    assert normalized.mean() == pytest.approx(0, abs=1e-6) and normalized.std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(moments.denormalize(normalized), values, rtol=1e-5, atol=1e-4)


def test_equal_targets_do_not_blow_up():
    moments = RunningMoments()
    moments.update(np.full(100, 3.0, np.float32))
    assert moments.std == pytest.approx(0.01)
    moments.update(np.zeros(0, np.float32))
    assert moments.mean == 3.0


def test_the_state_goes_round():
    moments, copy = RunningMoments(), RunningMoments()
    for number in range(5):
        moments.update(np.array([number, 2.5 * number + 1]))
    copy.load_state_dict(moments.state_dict())
    moments.update(np.array([9.0]))
    copy.update(np.array([9.0]))
    assert (copy.mean, copy.std) == (moments.mean, moments.std)


def test_popart_leaves_the_denormalised_output_as_it_was():
    torch.manual_seed(0)
    head, features = nn.Linear(16, 1), torch.randn(50, 16)
    moments, rng = RunningMoments(), np.random.default_rng(0)
    for scale in (1.0, 300.0, 300.0, 0.5):
        old_mean, old_std = moments.mean, moments.std
        before = head(features).detach().double() * old_std + old_mean
        moments.update(rng.normal(scale, 2 * scale, size=500))
        rescale_head(head, old_mean, old_std, moments.mean, moments.std)
        after = head(features).detach().double() * moments.std + moments.mean
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * moments.std)
