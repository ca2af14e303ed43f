"""Advantages and targets against numbers worked out by hand and loops that follow the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_marl.algorithms.returns import Trajectory, gae, vtrace

ENDS = ["terminated", "truncated"]


def column(*numbers, dtype=np.float32):
    return np.array(numbers, dtype)


def two_episodes(end: str) -> Trajectory:
    """Return a trace whose first episode ends at t = 1; t = 2 resets; the second goes on past the end."""
    ended = column(False, True, False, False, False, dtype=bool)
    never = np.zeros(5, bool)
    return Trajectory(
        reward=column(1.0, 2.0, 99.0, 3.0, 4.0),
        value=column(10.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        terminated=ended if end == "terminated" else never,
        truncated=ended if end == "truncated" else never,
        alive=column(True, True, False, True, True, dtype=bool),
    )


def random_trajectory(seed: int, num_steps: int = 40, shape=(3, 2)) -> Trajectory:
    """Return traces of many episodes with agents that end one by one, as environments write them."""
    rng = np.random.default_rng(seed)
    alive = np.zeros((num_steps + 1, *shape), bool)
    ends = np.zeros((2, num_steps, *shape), bool)
    alive[0] = True
    for t in range(num_steps):
        kind = rng.integers(2, size=shape)
        over = alive[t] & (rng.random(shape) < 0.15)
        ends[0, t], ends[1, t] = over & (kind == 0), over & (kind == 1)
        alive[t + 1] = alive[t] & ~over
        nobody = ~alive[t].any(axis=1)  # was over already: this step resets
        alive[t + 1][nobody] = True
    reward, value = rng.standard_normal((num_steps, *shape)), rng.standard_normal((num_steps + 1, *shape))
    return Trajectory(reward.astype(np.float32), value.astype(np.float32), ends[0], ends[1], alive[:-1])


def definition(trajectory: Trajectory, ratio, *, discount, gae_lambda, rho_max, c_max):
    """Sum the V-trace correction forwards, term by term, in double precision; ratio 1 gives lambda-returns.

    n-step errors are summed until the agent's episode or the trace ends; no recursion is used.
    """
    num_steps = len(trajectory.reward)
    correction = np.zeros((num_steps + 1, *trajectory.reward.shape[1:]))
    advantage = np.zeros_like(correction)
    for index in np.ndindex(*trajectory.reward.shape):
        start, where = index[0], index[1:]
        if not trajectory.alive[index]:
            continue
        weight = weight_of_advantage = 1.0
        for t in range(start, num_steps):
            at = (t, *where)
            bootstrap = (
                0.0 if trajectory.terminated[at] else discount * float(trajectory.value[(t + 1, *where)])
            )
            error = float(trajectory.reward[at]) + bootstrap - float(trajectory.value[at])
            rho = min(rho_max, float(ratio[at]))
            correction[index] += weight * rho * error
            advantage[index] += weight_of_advantage * (error if t == start else rho * error)
            if trajectory.terminated[at] or trajectory.truncated[at]:
                break
            weight *= discount * gae_lambda * min(c_max, float(ratio[at]))
            # the first action's own ratio is left to whoever uses the advantage
            weight_of_advantage *= (
                discount * gae_lambda * (1.0 if t == start else min(c_max, float(ratio[at])))
            )
    return trajectory.value[:-1] + correction[:-1], advantage[:-1]


def test_gae_by_hand_when_the_episode_terminates():
    estimates = gae(two_episodes("terminated"), discount=0.5, gae_lambda=0.5)
    # errors: 1 + .5 * 20 - 10 = 1; 2 - 20 = -18; -; 3 + .5 * 50 - 40 = -12; 4 + .5 * 60 - 50 = -16
    np.testing.assert_allclose(estimates.advantage, [1 - 18 / 4, -18, 0, -12 - 16 / 4, -16])
    np.testing.assert_allclose(estimates.value_target[[0, 1, 3, 4]], [6.5, 2, 24, 34])


def test_gae_by_hand_when_the_episode_is_truncated():
    estimates = gae(two_episodes("truncated"), discount=0.5, gae_lambda=0.5)
    # the second error now is 2 + .5 * 30 - 20 = -3: 30 is the value of the final observation
    np.testing.assert_allclose(estimates.advantage, [1 - 3 / 4, -3, 0, -16, -16])


def test_vtrace_by_hand():
    trajectory = two_episodes("truncated")
    ratio = column(0.5, 2.0, 7.0, 4.0, 0.25)
    estimates = vtrace(trajectory, ratio, discount=0.5, gae_lambda=1.0, rho_max=1.5, c_max=1.0)
    # rho: .5 1.5 - 1.5 .25; c: .5 1 - 1 .25; errors: 1 -3 - -12 -16
    target = [
        10 + 0.5 * (1 + 0.5 * 1.5 * -3),
        20 + 1.5 * -3,
        40 + 1.5 * -12 + 0.5 * 0.25 * -16,
        50 + 0.25 * -16,
    ]
    np.testing.assert_allclose(estimates.value_target[[0, 1, 3, 4]], [9.375, 15.5, 20.0, 46.0])
    np.testing.assert_allclose(estimates.value_target[[1, 3, 4]], target[1:])
    # advantages are r + gamma * (target of t + 1) - V: 1 + .5 * 15.5 - 10, -3, 3 + .5 * 46 - 40, -16
    np.testing.assert_allclose(estimates.advantage, [-1.25, -3, 0, -14, -16])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_gae_follows_the_definition(seed: int, gae_lambda: float):
    trajectory = random_trajectory(seed)
    assert trajectory.terminated.any() and trajectory.truncated.any() and not trajectory.alive.all()
    estimates = gae(trajectory, discount=0.97, gae_lambda=gae_lambda)
    ones = np.ones_like(trajectory.reward)
    target, advantage = definition(
        trajectory, ones, discount=0.97, gae_lambda=gae_lambda, rho_max=1.0, c_max=1.0
    )
    np.testing.assert_allclose(estimates.advantage, advantage, atol=2e-5)
    np.testing.assert_allclose(estimates.value_target, target, atol=2e-5)
    assert (estimates.advantage[~trajectory.alive] == 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rho_max", "c_max"), [(1.0, 1.0), (2.0, 0.5)])
def test_vtrace_follows_the_definition(seed: int, rho_max: float, c_max: float):
    trajectory = random_trajectory(seed)
    ratio = np.exp(0.7 * np.random.default_rng(seed).standard_normal(trajectory.reward.shape)).astype(
        np.float32
    )
    settings = {"discount": 0.97, "gae_lambda": 0.9, "rho_max": rho_max, "c_max": c_max}
    estimates = vtrace(trajectory, ratio, **settings)
    target, advantage = definition(trajectory, ratio, **settings)
    np.testing.assert_allclose(estimates.value_target, target, atol=2e-5)
    np.testing.assert_allclose(estimates.advantage, advantage, atol=2e-5)


def test_vtrace_on_policy_is_gae():
    trajectory = random_trajectory(7)
    ones = np.ones_like(trajectory.reward)
    corrected = vtrace(trajectory, ones, discount=0.97, gae_lambda=0.9, rho_max=1.0, c_max=1.0)
    plain = gae(trajectory, discount=0.97, gae_lambda=0.9)
    np.testing.assert_allclose(corrected.value_target, plain.value_target, rtol=1e-6)
    np.testing.assert_allclose(corrected.advantage, plain.advantage, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("end", ENDS)
def test_nothing_leaks_from_one_episode_into_another(end: str):
    trajectory = two_episodes(end)
    changed = trajectory._replace(reward=trajectory.reward + column(0, 0, 5, 5, 5))
    for estimate in (
        lambda t: gae(t, discount=0.9, gae_lambda=0.9),
        lambda t: vtrace(t, np.ones(5, np.float32), discount=0.9, gae_lambda=0.9, rho_max=1.0, c_max=1.0),
    ):
        before, after = estimate(trajectory), estimate(changed)
        assert np.array_equal(before.advantage[:2], after.advantage[:2])
        assert (before.advantage[3:] != after.advantage[3:]).all()


def test_a_cut_off_episode_ends_its_trace_even_if_the_next_step_counts():
    """Environments that reset within the step are not ours, but the function is to be right for them too."""
    trajectory = two_episodes("truncated")._replace(alive=np.ones(5, bool))
    estimates = gae(trajectory, discount=0.5, gae_lambda=0.5)
    np.testing.assert_allclose(estimates.advantage[:2], [1 - 3 / 4, -3])


def test_the_value_behind_a_terminal_step_is_not_even_read():
    trajectory = two_episodes("terminated")
    trajectory.value[2] = np.nan
    assert np.isfinite(gae(trajectory, discount=0.9, gae_lambda=0.9).advantage).all()
