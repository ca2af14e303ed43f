"""The two kinds of steps are one algorithm: same gradients, same checkpoints, same decisions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hpc_marl.algorithms import flat_steps
from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.flat_parameters import FlatAdam, Layout, aligned_zeros, share_memory
from hpc_marl.algorithms.flat_rows import Chunk, FlatRows
from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.algorithms.steps import Scalars
from hpc_marl.algorithms.work_memory import WorkMemory
from hpc_marl.config import PPOConfig
from hpc_marl.policies import ActorCritic
from tests.unit.algorithms.rank_process import stale
from tests.unit.algorithms.sample_batches import copy_of, make_batch, make_spec

ACTIONS = {
    "discrete": {},
    "masked": {"has_action_mask": True},
    "continuous": {"num_actions": 0, "action_size": 2},
}
CRITICS = {
    "local": {"critic": "local"},
    "one agent": {"critic": "local", "num_agents": 1},
    "joint": {"critic": "central", "num_agents": 3},
    "state": {"critic": "central", "state_size": 3},
}
LOSSES = {
    "plain": {"value_normalization": "none", "entropy_coef": 0.0, "normalize_advantage": False},
    "clipped value": {"value_clip_eps": 0.05, "clip_eps": 0.003, "entropy_coef": 0.1},
    "huber": {"value_loss": "huber", "huber_delta": 0.3, "value_clip_eps": 0.2},
    "popart": {"value_normalization": "popart", "max_grad_norm": 0.01, "value_coef": 2.0},
}


def with_policy(spec, **policy):
    return dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, **policy))


def make_pair(spec, *, mode="sync", seed=3, **config):
    settings = {
        **{"critic": spec.critic, "num_epochs": 2, "num_minibatches": 3},
        **{"learning_rate": 0.003, "clip_eps": 0.005, **config},
    }
    return [
        PPO(PPOConfig(**settings), spec, total_env_steps=1000, mode=mode, seed=seed, steps=steps)
        for steps in (AutogradSteps, FlatSteps)
    ]


def everything(ppo):
    groups, scalars = ppo.state_dict()
    return {
        **{f"{group}.{name}": array for group, arrays in groups.items() for name, array in arrays.items()},
        **scalars,
    }


def assert_close(one, two, atol=2e-5):
    assert one.keys() == two.keys()
    for name in one:
        first, second = np.asarray(one[name]), np.asarray(two[name])
        assert first.dtype == second.dtype and first.shape == second.shape, name
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=atol, err_msg=name)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_both_kinds_of_steps_learn_the_same(actions, critic, loss):
    spec = make_spec(**{**ACTIONS[actions], **CRITICS[critic]})
    for mode, correction in (("sync", "none"), ("async", "vtrace"), ("async", "decoupled")):
        pair = make_pair(spec, mode=mode, off_policy_correction=correction, **LOSSES[loss])
        # batches of one policy for both: rounding must not be blown up by other actions
        weights = pair[0].actor_weights()
        for number in range(2):
            batch = stale(make_batch(spec, weights, seed=number))
            one, two = (ppo.update(batch, 100 * number) for ppo in pair)
            assert one["skipped_minibatches"] == two["skipped_minibatches"] == 0
            assert one["clip_fraction"] > 0
            assert_close(one, two)
        assert_close(everything(pair[0]), everything(pair[1]))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(
    "sizes", [((12,), (10,)), ((9, 12, 8), (7,)), ((8,), (5, 6, 7)), ((16, 16), (16, 16))]
)
def test_networks_of_every_depth_and_activation(sizes, activation):
    actor, critic = sizes
    spec = with_policy(
        make_spec(), hidden_sizes=actor, critic_hidden_sizes=critic, activation=activation, agent_id=False
    )
    pair = make_pair(spec, num_minibatches=1, mode="async")
    batch = stale(make_batch(spec, pair[0].actor_weights(), seed=1))
    assert_close(*(ppo.update(batch, 0) for ppo in pair))
    assert_close(everything(pair[0]), everything(pair[1]))


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("critic", ["local", "central"])
def test_a_gradient_does_not_depend_on_how_it_is_cut_into_chunks(actions, critic):
    """One step of plain gradient descent, as Adam's first step hides the gradient's size."""
    spec = make_spec(critic=critic, **ACTIONS[actions])
    gradients = []
    for rows in (1000, 7, 1):
        _, ppo = make_pair(spec, num_minibatches=1)
        steps = ppo._steps
        steps._lanes[0]._rows_of_chunk = rows
        batch = make_batch(spec, ppo.actor_weights())
        steps.read(batch)
        value, _ = steps.evaluate(with_log_prob=False)
        rng = np.random.default_rng(0)
        alive = batch.alive[:-1].astype(np.float32)
        noise = rng.standard_normal((2, *alive.shape)).astype(np.float32)
        steps._begin(Scalars(batch.log_prob, noise[0], noise[1], value[:-1], alive))
        (share,) = steps._minibatches(torch.Generator())
        found = steps._gradient(share, True)
        gradients.append((steps._total.copy(), np.array(found), value))
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    assert np.count_nonzero(gradients[0][0]) > 0.9 * sum(p.numel() for p in ppo.model.parameters())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_threads_divide_the_rows_and_change_nothing_but_rounding(mode, monkeypatch):
    monkeypatch.setattr(flat_steps, "_COLUMNS_OF_LANE", 20)
    spec = make_spec(has_action_mask=True)
    config = PPOConfig(critic="central", num_minibatches=2, clip_eps=0.02, learning_rate=0.003)

    def learner(num_threads):
        return PPO(config, spec, total_env_steps=1000, mode=mode, num_threads=num_threads, steps=FlatSteps)

    alone, first, second = learner(1), learner(3), learner(3)
    assert len(first._steps._split(50)) == 3 and len(first._steps._split(10)) == 1
    for number in range(2):
        batch = stale(make_batch(spec, alone.actor_weights(), seed=number))
        metrics = [ppo.update(batch, 100 * number) for ppo in (alone, first, second)]
        assert metrics[1] == metrics[2]
        assert_close(metrics[0], metrics[1])
    assert_equal(everything(first), everything(second))
    assert_close(everything(alone), everything(first))


def test_a_gradient_is_that_of_finite_differences():
    """Independent of torch: the loss itself, in the direction of the gradient."""
    spec = make_spec(num_actions=0, action_size=2)
    _, ppo = make_pair(spec, num_minibatches=1, entropy_coef=0.1, clip_eps=10.0)
    steps, batch = ppo._steps, make_batch(spec, ppo.actor_weights())
    steps.read(batch)
    noise = np.random.default_rng(0).standard_normal((3, *batch.reward.shape)).astype(np.float32)
    alive = batch.alive[:-1].astype(np.float32)
    steps._begin(Scalars(batch.log_prob + 0.05 * noise[2], noise[0], noise[1], noise[1], alive))
    (share,) = steps._minibatches(torch.Generator())
    norm = steps._gradient(share, False).grad_norm
    direction, values, losses = steps._total / norm, steps._values.copy(), []
    for step in (-1e-2, 1e-2):
        steps._values[:] = values + step * direction
        losses.append(steps._gradient(share, False).loss)
    assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize(("before", "after"), [(AutogradSteps, FlatSteps), (FlatSteps, AutogradSteps)])
def test_checkpoints_of_one_kind_are_gone_on_from_by_the_other(before, after):
    spec = make_spec(has_action_mask=True)
    config = PPOConfig(critic="central", num_minibatches=2, value_normalization="popart")
    options = {"total_env_steps": 1000, "mode": "async"}
    first = PPO(config, spec, steps=before, **options)
    batches = [make_batch(spec, first.actor_weights(), seed=number) for number in range(3)]
    first.update(batches[0], 0)
    first.update(batches[1], 100)
    other = PPO(config, spec, steps=after, seed=9, **options)
    other.load_state_dict(*first.state_dict())
    assert_equal(everything(first), everything(other))
    assert_equal(first.actor_weights(), other.actor_weights())
    assert_close(first.update(batches[2], 200), other.update(batches[2], 200))
    assert_close(everything(first), everything(other))


def test_a_checkpoint_before_the_first_step_has_no_moments():
    pair = make_pair(make_spec())
    assert_equal(everything(pair[0]), everything(pair[1]))
    trained = make_pair(make_spec())[1]
    trained.update(make_batch(trained.spec, trained.actor_weights()), 0)
    trained.load_state_dict(*pair[0].state_dict())
    assert_equal(everything(trained), everything(pair[0]))


@pytest.mark.parametrize("field", ["observation", "reward", "log_prob"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_is_skipped_by_both(field, poison):
    pair = make_pair(make_spec(), value_normalization="none", num_minibatches=4)
    batch = make_batch(pair[0].spec, pair[0].actor_weights())
    getattr(batch, field)[0, 0, 0] = poison
    with np.errstate(invalid="ignore", over="ignore"):
        one, two = (ppo.update(batch, 0) for ppo in pair)
    for name in ("skipped_updates", "skipped_minibatches"):
        assert one[name] == two[name], name
    assert pair[0].optimizer_steps == pair[1].optimizer_steps
    assert all(np.isfinite(array).all() for array in everything(pair[1]).values())


def test_parameters_are_views_and_stay_so():
    _, ppo = make_pair(make_spec(), value_normalization="popart")
    addresses = {name: tensor.data_ptr() for name, tensor in ppo.model.named_parameters()}
    ppo.update(make_batch(ppo.spec, ppo.actor_weights()), 0)
    ppo.load_state_dict(*ppo.state_dict())
    assert addresses == {name: tensor.data_ptr() for name, tensor in ppo.model.named_parameters()}
    ppo._steps._values[:] = 0.25
    assert all((weight == 0.25).all() for weight in ppo.actor_weights().values())


@pytest.mark.parametrize("critic", CRITICS)
def test_the_layout_is_the_models(critic):
    for actions in ACTIONS.values():
        spec = make_spec(**{**actions, **CRITICS[critic]})
        model, layout = ActorCritic(spec, seed=1), Layout(spec)
        before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        assert set(layout.names) == before.keys()
        vector = share_memory(model, layout)
        assert vector.ctypes.data % 64 == 0
        for name, tensor in model.named_parameters():
            assert torch.equal(before[name], tensor)
        inside = sum(layout.view(vector, name).size for name in layout.names)
        vector += 1.0
        assert sum(float((t - before[n]).detach().mean()) for n, t in model.named_parameters()) == (
            pytest.approx(len(before), rel=1e-5)
        )
        assert inside <= layout.size < inside + 16 * len(before)


def test_who_learns_how():
    assert FlatSteps.can_learn(ActorCritic(make_spec()))
    assert not FlatSteps.can_learn(ActorCritic(make_spec("gru")))
    assert not FlatSteps.can_learn(ActorCritic(make_spec()).to("meta"))
    odd = ActorCritic(make_spec())
    odd.actor.torso.append(torch.nn.Linear(2, 2))
    assert not FlatSteps.can_learn(odd)


def test_adam_is_torchs():
    rng = np.random.default_rng(0)
    values = aligned_zeros(40)
    values[:] = rng.standard_normal(40)
    parameter = torch.nn.Parameter(torch.from_numpy(values.copy()))
    theirs, ours = torch.optim.Adam([parameter], lr=0.1, eps=1e-5), FlatAdam(values, 1e-5)
    for step in range(30):
        gradient = rng.standard_normal(40).astype(np.float32) * 10.0 ** -(step % 7)
        parameter.grad = torch.from_numpy(gradient)
        theirs.param_groups[0]["lr"] = rate = 0.1 / (step + 1)
        theirs.step()
        ours.step(gradient, rate)
    np.testing.assert_allclose(values, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_rows_hold_all_that_a_chunk_reads():
    spec = make_spec(has_action_mask=True, state_size=3)
    batch = make_batch(spec, ActorCritic(spec).actor_weights())
    for array in batch.arrays().values():
        array.flags.writeable = False  # as views of shared memory are
    rows = FlatRows(spec, batch)
    number = np.arange(5 * batch.reward.size, dtype=np.float32).reshape(5, *batch.reward.shape)
    rows.fill_scalars(list(number))
    alive = batch.alive[:-1].reshape(-1, 2)
    assert np.array_equal(rows.live, np.flatnonzero(alive.any(axis=1)))
    assert np.array_equal(rows.num_alive, alive.sum(axis=1)[rows.live])
    index = rows.live[[*np.flatnonzero(rows.num_alive == 1)[[1, 0]], -1]]
    chunk, same = Chunk(WorkMemory(), spec, 3), Chunk(WorkMemory(), spec, 3)
    chunk.read(rows, index)
    t, e = np.divmod(index, batch.num_envs)

    def by_agent(values):  # [3, N, ...] to [N * 3, ...]
        return values.swapaxes(0, 1).reshape(6, *values.shape[2:])

    lives = by_agent(batch.alive[t, e])
    assert lives.any() and not lives.all()
    own = by_agent(batch.observation[t, e])
    assert np.array_equal(chunk.own_rows[lives, :5], own[lives])
    assert np.array_equal(chunk.own_rows[:, 5:], np.repeat(np.eye(2), 3, axis=0))
    assert np.array_equal(chunk.own, chunk.own_rows.T)
    assert np.array_equal(chunk.action[0, lives], by_agent(batch.action[t, e])[lives])
    assert np.array_equal(chunk.action_mask.T, by_agent(batch.action_mask[t, e]))
    assert np.array_equal(chunk.scalars, [by_agent(one[t, e]) for one in number])
    assert np.array_equal(chunk.state_rows, batch.state[t, e])
    assert np.array_equal(chunk.state, chunk.state_rows.T)
    chunk.read(rows, slice(3, 6))
    same.read(rows, np.arange(3, 6))
    assert np.array_equal(chunk.own, same.own) and np.array_equal(chunk.state, same.state)


def test_nobody_reads_what_absent_agents_see():
    spec = make_spec(num_agents=3)
    batch = make_batch(spec, ActorCritic(spec).actor_weights())
    dirty = copy_of(batch)
    gone = ~batch.alive & batch.alive.any(axis=2, keepdims=True)
    gone[1:] &= ~batch.truncated
    dirty.observation[gone] = np.nan
    one, two = FlatRows(spec, batch), FlatRows(spec, dirty)
    for rows in (one, two):
        rows.fill_scalars([np.zeros_like(batch.reward)] * 5)
    assert one.has_absent and np.array_equal(one.table, two.table) and np.array_equal(one.state, two.state)


def test_memory_is_one_for_all_sizes():
    memory = WorkMemory()
    large, small = memory.array("a", 4, 3), memory.array("a", 2, 2)
    assert np.shares_memory(large, small) and not np.shares_memory(large, memory.array("b", 2))
    assert memory.array("a", 20).shape == (20,)
