"""PPO: the whole update, for every kind of policy."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from hpc_marl.algorithms import ALGORITHMS, algorithm_class
from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.config import PPOConfig
from hpc_marl.errors import CheckpointError, ConfigError
from tests.unit.algorithms.rank_process import break_second_loss
from tests.unit.algorithms.sample_batches import copy_of, make_batch, make_spec

ACTIONS = {
    "discrete": {},
    "masked": {"has_action_mask": True},
    "continuous": {"num_actions": 0, "action_size": 2},
}
KINDS = list(itertools.product(["none", "gru"], ACTIONS))


def make_ppo(spec, *, mode="sync", seed=0, steps=None, **config):
    settings = {
        "critic": spec.critic,
        "num_epochs": 2,
        "num_minibatches": 2,
        "memory_chunk_length": 4,
        **config,
    }
    return PPO(PPOConfig(**settings), spec, total_env_steps=1000, mode=mode, seed=seed, steps=steps)


def all_weights(ppo):
    return {name: tensor.numpy().copy() for name, tensor in ppo.model.state_dict().items()}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name


def train(ppo, first, last):
    """Update with batches first .. last - 1, each acted by the weights of its time."""
    for number in range(first, last):
        ppo.update(make_batch(ppo.spec, ppo.actor_weights(), seed=number), env_steps_done=100 * number)


@pytest.mark.parametrize(("recurrent", "actions"), KINDS)
def test_an_update_learns_and_reports(recurrent, actions):
    ppo = make_ppo(make_spec(recurrent, **ACTIONS[actions]), value_normalization="popart")
    before = all_weights(ppo)
    metrics = ppo.update(make_batch(ppo.spec, ppo.actor_weights()), env_steps_done=0)
    assert {
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "explained_variance",
    } < metrics.keys()
    assert {"grad_norm", "learning_rate", "skipped_updates", "skipped_minibatches"} < metrics.keys()
    assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())
    assert metrics["skipped_updates"] == metrics["skipped_minibatches"] == 0
    assert ppo.optimizer_steps == 4
    after = all_weights(ppo)
    assert all(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("recurrent", "mode"), [("none", "sync"), ("gru", "async")])
def test_training_is_reproducible_and_resumes_bit_for_bit(recurrent, mode):
    spec = make_spec(recurrent, has_action_mask=True)
    options = {"mode": mode, "value_normalization": "popart", "seed": 5}
    whole, again, first = (make_ppo(spec, **options) for _ in range(3))
    train(whole, 0, 4)
    train(again, 0, 4)
    assert_equal(all_weights(whole), all_weights(again))
    train(first, 0, 2)
    arrays, scalars = first.state_dict()
    train(first, 2, 3)  # what was returned must not follow the learner
    torch.manual_seed(99)
    resumed = make_ppo(spec, **{**options, "seed": 77})
    resumed.load_state_dict(arrays, scalars)
    train(resumed, 2, 4)
    assert_equal(all_weights(whole), all_weights(resumed))
    for group in ("model", "optim"):
        assert_equal(whole.state_dict()[0][group], resumed.state_dict()[0][group])
    assert whole.state_dict()[1] == resumed.state_dict()[1] == {"optimizer_steps": 16}


def test_a_fresh_learner_goes_round_too():
    spec = make_spec()
    one, two = make_ppo(spec, seed=1), make_ppo(spec, seed=2)
    two.load_state_dict(*one.state_dict())
    train(one, 0, 1)
    train(two, 0, 1)
    assert_equal(all_weights(one), all_weights(two))


def test_a_checkpoint_of_another_policy_is_refused():
    state = make_ppo(make_spec()).state_dict()
    with pytest.raises(CheckpointError, match="another policy"):
        make_ppo(make_spec(observation_size=6)).load_state_dict(*state)
    with pytest.raises(CheckpointError, match="value_normalization"):
        make_ppo(make_spec(), value_normalization="none").load_state_dict(*state)


def test_other_seeds_are_other_runs():
    one, two = make_ppo(make_spec(), seed=1), make_ppo(make_spec(), seed=2)
    assert not np.array_equal(one.actor_weights()["head.weight"], two.actor_weights()["head.weight"])


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize("state_size", [0, 3])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_dead_agents_did_has_no_influence(recurrent, state_size, mode):
    spec = make_spec(recurrent, state_size=state_size, num_agents=3)
    clean_ppo, dirty_ppo = make_ppo(spec, mode=mode), make_ppo(spec, mode=mode)
    clean = make_batch(spec, clean_ppo.actor_weights())
    dirty = copy_of(clean)
    dead = ~clean.alive[:-1]
    assert dead.any() and (dead.any(axis=2) & ~dead.all(axis=2)).any()
    dirty.action[dead], dirty.log_prob[dead], dirty.reward[dead] = 1_000_000, np.nan, np.inf
    cut = np.zeros_like(clean.alive)
    cut[1:] = clean.truncated
    unseen = ~clean.alive & ~cut & clean.alive.any(axis=2, keepdims=True)
    dirty.observation[unseen] = np.nan
    for ppo, batch in ((clean_ppo, clean), (dirty_ppo, dirty)):
        assert ppo.update(batch, 0)["skipped_updates"] == 0
    assert_equal(all_weights(clean_ppo), all_weights(dirty_ppo))


def test_statistics_are_those_of_live_agents():
    ppo = make_ppo(make_spec(), num_epochs=1, num_minibatches=1, discount=0.0)
    batch = make_batch(ppo.spec, ppo.actor_weights())
    alive = batch.alive[:-1]
    assert 0.1 < alive.mean() < 0.9
    batch.reward += 7.0
    metrics = ppo.update(batch, 0)
    sum_, sum_of_squares, weight = ppo.state_dict()[0]["model"]["value_moments.sums"]
    assert sum_ / weight == pytest.approx(batch.reward[alive].mean(), rel=1e-5)
    assert sum_of_squares / weight == pytest.approx(np.square(batch.reward[alive]).mean(), rel=1e-5)
    # before the first step all ratios are 1 and the surrogate is the mean of normalised advantages
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-6)
    error = batch.reward[alive] - batch.reward[alive].mean()
    assert metrics["advantage_std"] == pytest.approx(error.std(), rel=0.5)
    assert metrics["value_target_mean"] == pytest.approx(batch.reward[alive].mean(), rel=1e-5)


def test_the_final_observation_counts_where_an_episode_was_cut_off_only():
    spec = make_spec(num_agents=1)
    batch = make_batch(spec, make_ppo(spec).actor_weights())
    for ended, counts in ((batch.terminated, False), (batch.truncated, True)):
        t, e = np.argwhere(ended[..., 0])[0]
        other = copy_of(batch)
        other.observation[t + 1, e] += 3.0
        one, two = make_ppo(spec), make_ppo(spec)
        one.update(batch, 0)
        two.update(other, 0)
        same = np.array_equal(one.actor_weights()["head.weight"], two.actor_weights()["head.weight"])
        assert same != counts


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_on_policy_batches_need_no_correction(recurrent):
    """Sync is plain PPO; on such batches async must come to the same but for rounding."""
    spec = make_spec(recurrent)
    # one step: Adam turns rounding of tiny gradients into steps of full size later on
    options = {"num_epochs": 1, "num_minibatches": 1, "learning_rate": 1e-3}
    plain = make_ppo(spec, **options)
    batch = make_batch(spec, plain.actor_weights())
    plain_metrics = plain.update(batch, 0)
    for correction in ("none", "vtrace", "decoupled"):
        for mode in ("sync", "async"):
            ppo = make_ppo(spec, mode=mode, off_policy_correction=correction, **options)
            metrics = ppo.update(batch, 0)
            if mode == "sync" or correction == "none":
                assert_equal(all_weights(ppo), all_weights(plain))
                assert metrics == plain_metrics
            else:
                assert metrics["importance_ratio_mean"] == pytest.approx(1.0, abs=1e-5)
                assert metrics["policy_loss"] == pytest.approx(plain_metrics["policy_loss"], abs=1e-5)
                assert metrics["grad_norm"] == pytest.approx(plain_metrics["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("correction", ["vtrace", "decoupled"])
def test_stale_batches_are_weighted(correction):
    spec = make_spec("none")
    ppo = make_ppo(spec, mode="async", off_policy_correction=correction, learning_rate=0.02)
    stale = make_batch(spec, ppo.actor_weights())
    for number in range(3):
        metrics = ppo.update(make_batch(spec, ppo.actor_weights(), seed=number), 0)
        assert metrics["importance_ratio_max"] == pytest.approx(1.0, abs=1e-4)
    metrics = ppo.update(stale, 0)
    assert metrics["importance_ratio_max"] > 1.1
    assert 0 < metrics["importance_clipped_fraction"] < 1
    assert metrics["skipped_updates"] == 0


@pytest.mark.parametrize(
    ("recurrent", "field"),
    [("gru", "memory"), *itertools.product(["none", "gru"], ["observation", "reward", "log_prob"])],
)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_numbers_that_are_not_finite_never_reach_the_weights(recurrent, field, poison):
    spec = make_spec(recurrent)
    ppo, untouched = make_ppo(spec), make_ppo(spec)
    good = make_batch(spec, ppo.actor_weights())
    bad = copy_of(good)
    getattr(bad, field)[0, 0, 0] = poison
    with np.errstate(invalid="ignore"):
        metrics = ppo.update(bad, 0)
    assert metrics["skipped_updates"] + metrics["skipped_minibatches"] > 0
    for name in ("model", "optim"):
        assert all(np.isfinite(array).all() for array in ppo.state_dict()[0][name].values())
    if metrics["skipped_updates"]:
        assert_equal(all_weights(ppo), all_weights(untouched))
        ppo.update(good, 0)
        untouched.update(good, 0)
        assert_equal(all_weights(ppo), all_weights(untouched))


@pytest.mark.parametrize("steps", [AutogradSteps, FlatSteps])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(steps):
    ppo = make_ppo(make_spec(), num_epochs=1, num_minibatches=4, steps=steps)
    break_second_loss(ppo, float("nan"))
    metrics = ppo.update(make_batch(ppo.spec, ppo.actor_weights()), 0)
    assert metrics["skipped_minibatches"] == 1 and ppo.optimizer_steps == 3
    assert all(np.isfinite(weight).all() for weight in all_weights(ppo).values())


def test_huge_rewards_are_survived():
    ppo = make_ppo(make_spec())
    batch = make_batch(ppo.spec, ppo.actor_weights())
    batch.reward *= 1e30
    metrics = ppo.update(batch, 0)
    assert metrics["skipped_updates"] == metrics["skipped_minibatches"] == 0
    assert all(np.isfinite(weight).all() for weight in all_weights(ppo).values())


def test_a_batch_without_live_agents_teaches_nothing():
    ppo = make_ppo(make_spec())
    batch = make_batch(ppo.spec, ppo.actor_weights())
    batch.alive[:] = False
    before = all_weights(ppo)
    assert ppo.update(batch, 0)["skipped_updates"] == 1
    assert_equal(all_weights(ppo), before)


def test_the_learning_rate_goes_to_zero():
    ppo = make_ppo(make_spec(), learning_rate=0.1)
    batch = make_batch(ppo.spec, ppo.actor_weights())
    assert ppo.update(batch, 250)["learning_rate"] == pytest.approx(0.075)
    before = all_weights(ppo)
    assert ppo.update(batch, 1001)["learning_rate"] == 0.0
    # PopArt aside, which is off here, nothing may move any more
    assert_equal(all_weights(ppo), before)
    constant = make_ppo(make_spec(), learning_rate=0.1, anneal_learning_rate=False)
    assert constant.update(batch, 1001)["learning_rate"] == 0.1


@pytest.mark.parametrize(("recurrent", "actions"), KINDS)
def test_a_rewarded_action_becomes_likely(recurrent, actions):
    spec = make_spec(recurrent, num_agents=1, critic="local", **ACTIONS[actions])
    ppo = make_ppo(spec, learning_rate=0.02, anneal_learning_rate=False, num_epochs=4, entropy_coef=0.0)
    rewards = []
    for number in range(8):
        batch = make_batch(spec, ppo.actor_weights(), num_steps=32, num_envs=8, seed=number)
        rewards.append(batch.reward[batch.alive[:-1]].mean())
        ppo.update(batch, 0)
    assert rewards[-1] > rewards[0] + 0.25


@pytest.mark.parametrize("value_normalization", ["none", "running", "popart"])
def test_the_critic_learns_to_foretell(value_normalization):
    spec = make_spec(state_size=2, num_agents=2)
    config = {"learning_rate": 0.01, "anneal_learning_rate": False, "num_epochs": 4, "discount": 0.0}
    ppo = make_ppo(
        spec, value_normalization=value_normalization, value_loss="huber", max_grad_norm=10.0, **config
    )
    level = 0.0 if value_normalization == "none" else 20.0
    for number in range(20):
        batch = make_batch(spec, ppo.actor_weights(), num_envs=16, seed=number)
        batch.reward[:] = level + 3.0 * batch.state[:-1, :, :1]
        metrics = ppo.update(batch, 0)
    assert metrics["explained_variance"] > 0.5


@pytest.mark.parametrize(
    ("recurrent", "looked_at"), [("none", "actor.torso.0.weight"), ("gru", "actor.gru.weight_input")]
)
def test_settings_reach_the_loss(recurrent, looked_at):
    """Every switch of the config must make a difference."""
    spec = make_spec(recurrent)
    changes = {
        "num_epochs": 1,
        "num_minibatches": 1,
        "learning_rate": 1e-5,
        "adam_eps": 1.0,
        "discount": 0.5,
        "gae_lambda": 0.5,
        "clip_eps": 1e-4,
        "value_clip_eps": 1e-3,
        "value_coef": 0.1,
        "value_loss": "huber",
        "entropy_coef": 1.0,
        "max_grad_norm": 1e-3,
        "normalize_advantage": False,
        "value_normalization": "none",
    }
    base = {"learning_rate": 0.01, "huber_delta": 0.1}
    batch = make_batch(spec, make_ppo(spec).actor_weights())

    def updated(**config):
        ppo = make_ppo(spec, **{**base, **config})
        ppo.update(batch, 0)
        return all_weights(ppo)[looked_at]

    reference = updated()
    for name, value in changes.items():
        assert not np.array_equal(updated(**{name: value}), reference), name
    asynchronous = {"mode": "async", "off_policy_correction": "vtrace"}
    stale = dataclasses.replace(batch, log_prob=batch.log_prob - 0.3)
    ratios = [{}, {"vtrace_rho_max": 0.5}, {"vtrace_c_max": 0.5}, {"off_policy_correction": "decoupled"}]
    results = []
    for change in ratios:
        ppo = make_ppo(spec, **{**base, **asynchronous, **change})
        ppo.update(stale, 0)
        results.append(all_weights(ppo)[looked_at])
    for one, two in itertools.combinations(results, 2):
        assert not np.array_equal(one, two)


def test_algorithms_by_name():
    assert {algorithm_class(name) for name in ALGORITHMS} == {PPO}
    with pytest.raises(ConfigError, match="choose one of ippo, mappo, ppo"):
        algorithm_class("qmix")
