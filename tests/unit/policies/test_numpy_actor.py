"""NumpyActor: the same answers as the torch networks, for every kind of policy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import hpc_marl.policies
from hpc_marl.errors import ConfigError, WorkerError
from hpc_marl.policies import ActorCritic, NumpyActor, TorchActor, actor_shapes, make_noise
from hpc_marl.policies.act_rows import ActRows
from tests.unit.policies.small_policies import KINDS, make_inputs, make_model, make_spec


def load_both(spec):
    model = make_model(spec)
    actors = NumpyActor(spec), TorchActor(spec)
    for actor in actors:
        actor.load(model.actor_weights(), 4)
    return model, *actors


def assert_close(one, two):
    assert np.asarray(one).dtype == np.asarray(two).dtype
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(("recurrent", "actions", "agent_id"), KINDS)
@pytest.mark.parametrize("greedy", [False, True])
def test_numpy_and_torch_actors_agree(recurrent, actions, agent_id, greedy):
    spec = make_spec(recurrent, actions, agent_id)
    _, numpy_actor, torch_actor = load_both(spec)
    for num_envs in (1, 33):
        inputs = make_inputs(spec, num_envs, seed=num_envs)
        ours, theirs = numpy_actor.act(*inputs, greedy), torch_actor.act(*inputs, greedy)
        if spec.env.is_continuous:
            assert_close(ours.action, theirs.action)
        else:
            assert ours.action.dtype == theirs.action.dtype == np.int32
            assert np.array_equal(ours.action, theirs.action)
        assert_close(ours.log_prob, theirs.log_prob)
        assert ours.policy_version == theirs.policy_version == 4
        if recurrent == "none":
            assert ours.memory is None and theirs.memory is None
        else:
            assert_close(ours.memory, theirs.memory)


@pytest.mark.parametrize(("recurrent", "actions", "agent_id"), KINDS)
def test_log_probs_are_those_the_learner_computes(recurrent, actions, agent_id):
    spec = make_spec(recurrent, actions, agent_id, activation="relu")
    model, numpy_actor, _ = load_both(spec)
    observation, mask, memory, noise = make_inputs(spec, 20)
    result = numpy_actor.act(observation, mask, memory, noise)
    arrays = {"observation": observation, "action_mask": mask, "memory": memory}
    tensors = {name: None if array is None else torch.from_numpy(array) for name, array in arrays.items()}
    action = torch.from_numpy(result.action if spec.env.is_continuous else result.action.astype(np.int64))
    if recurrent == "gru":  # sequences of one step
        action = action.unsqueeze(1)
        for name in ("observation", "action_mask"):
            tensors[name] = None if tensors[name] is None else tensors[name].unsqueeze(1)
    log_prob, entropy, _ = model.evaluate_actions(model.inputs(tensors.pop("observation"), **tensors), action)
    assert_close(result.log_prob, log_prob.detach().reshape(20, 3).numpy())
    assert entropy.shape == log_prob.shape


def test_results_do_not_depend_on_who_else_is_in_the_batch():
    spec = make_spec("gru", "masked")
    _, actor, _ = load_both(spec)
    observation, mask, memory, noise = make_inputs(spec, 50)
    whole = actor.act(observation, mask, memory, noise)
    for piece in (slice(0, 1), slice(1, 8), slice(8, 50)):
        part = actor.act(observation[piece], mask[piece], memory[piece], noise[piece])
        assert np.array_equal(part.action, whole.action[piece])
        assert_close(part.log_prob, whole.log_prob[piece])
        assert_close(part.memory, whole.memory[piece])


def test_results_outlive_the_next_call_and_inputs_stay_as_they_were():
    spec = make_spec("gru", "continuous")
    _, actor, _ = load_both(spec)
    first, second = make_inputs(spec, 4, seed=1), make_inputs(spec, 4, seed=2)
    before = [None if array is None else array.copy() for array in first]
    result = actor.act(*first)
    kept = [array.copy() for array in result[:3]]
    actor.act(*second)
    for array, copy in zip(result[:3], kept, strict=True):
        assert np.array_equal(array, copy)
    for array, copy in zip(first, before, strict=True):
        assert array is copy or np.array_equal(array, copy)


def test_masked_actions_are_never_drawn_whatever_the_noise():
    spec = make_spec(actions="masked")
    _, actor, _ = load_both(spec)
    num_envs = 2000
    observation, mask, _, noise = make_inputs(spec, num_envs)
    noise[: num_envs // 2] = 1 - 2.0**-24  # the largest number below 1
    noise[num_envs // 2 : num_envs // 2 + 500] = 0.0
    result = actor.act(observation * 10, mask, None, noise)
    assert np.take_along_axis(mask, result.action[..., None], axis=2).all()
    assert np.isfinite(result.log_prob).all()


def test_actions_are_drawn_with_the_probabilities_they_report():
    spec = make_spec(num_actions=3, agent_names=("a",))
    _, actor, _ = load_both(spec)
    observation = np.tile(make_inputs(spec, 1)[0], (20_000, 1, 1))
    noise = make_noise(spec.env, np.random.default_rng(5), 20_000)
    result = actor.act(observation, None, None, noise)
    for action in range(3):
        drawn = result.action == action
        assert drawn.any()
        assert drawn.mean() == pytest.approx(np.exp(result.log_prob[drawn][0]), abs=0.015)


def test_weights_have_the_promised_names_and_shapes():
    for recurrent, actions, agent_id in KINDS:
        spec = make_spec(recurrent, actions, agent_id)
        weights = ActorCritic(spec).actor_weights()
        assert {name: array.shape for name, array in weights.items()} == actor_shapes(spec)
        assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in weights.values())


def test_loading_copies():
    spec = make_spec()
    model, actor, torch_actor = load_both(spec)
    weights = model.actor_weights()
    inputs = make_inputs(spec, 5)
    for one in (actor, torch_actor):
        one.load(weights, 5)
    expected = actor.act(*inputs).log_prob
    for array in weights.values():
        array[:] = 0
    assert np.array_equal(actor.act(*inputs).log_prob, expected)
    assert_close(torch_actor.act(*inputs).log_prob, expected)


def test_weights_of_another_policy_are_refused():
    spec = make_spec()
    actor = NumpyActor(spec)
    weights = make_model(spec).actor_weights()
    with pytest.raises(ConfigError, match="another policy: log_std"):
        actor.load({**weights, "log_std": np.zeros(5, np.float32)}, 1)
    with pytest.raises(ConfigError, match=r"'head.bias' has shape \(4,\), this policy's is \(5,\)"):
        actor.load({**weights, "head.bias": np.zeros(4, np.float32)}, 1)
    with pytest.raises(WorkerError, match="call load"):
        actor.act(*make_inputs(spec, 1))


def test_one_agent_has_no_id():
    assert make_spec(agent_names=("a",)).own_input_size == 6
    assert make_spec().own_input_size == 9
    assert make_spec(agent_id=False).own_input_size == 6
    assert make_spec(critic="central").critic_input_size == 3 * 6 + 9
    assert make_spec(critic="central", state_size=4).critic_input_size == 4 + 9
    assert make_spec(state_size=4).critic_input_size == 9


def test_acting_in_numpy_does_not_import_torch():
    code = "import sys, hpc_marl.policies.numpy_actor, hpc_marl.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="Actress"):
        _ = hpc_marl.policies.Actress


@pytest.mark.parametrize(("recurrent", "actions", "agent_id"), KINDS)
def test_acting_in_place_gives_the_same_numbers(recurrent, actions, agent_id):
    spec = make_spec(recurrent, actions, agent_id)
    _, actor, _ = load_both(spec)
    observation, mask, memory, noise = make_inputs(spec, 7)
    expected = actor.act(observation, mask, memory, noise)
    rows = 7 * 3
    written = ActRows(
        observation.reshape(rows, -1),
        None if mask is None else mask.reshape(rows, -1),
        None if memory is None else memory.reshape(rows, -1),
        noise.reshape(rows, -1) if spec.env.is_continuous else noise.reshape(rows),
        np.zeros_like(expected.action).reshape(rows, *expected.action.shape[2:]),
        np.zeros(rows, np.float32),
    )
    actor.act_rows(written)
    assert np.array_equal(written.action.reshape(expected.action.shape), expected.action)
    assert np.array_equal(written.log_prob.reshape(7, 3), expected.log_prob)
    if memory is not None:
        assert np.array_equal(written.memory.reshape(memory.shape), expected.memory)


@pytest.mark.parametrize("num_actions", [1, 2, 3, 11])
@pytest.mark.parametrize("size", [1.0, 20.0, 300.0])
def test_logits_of_every_size_and_number_give_the_probabilities_of_torch(num_actions, size):
    """Small ones need no guard against overflow, large ones do; few and many actions are summed in different ways."""
    spec = make_spec(num_actions=num_actions)
    weights = make_model(spec).actor_weights()
    weights["head.weight"] *= size
    inputs = make_inputs(spec, 100)
    actors = NumpyActor(spec), TorchActor(spec)
    for actor in actors:
        actor.load(weights, 1)
    ours, theirs = (actor.act(*inputs) for actor in actors)
    assert np.array_equal(ours.action, theirs.action)
    np.testing.assert_allclose(ours.log_prob, theirs.log_prob, rtol=1e-5, atol=4e-6 * max(size, 1))


def test_new_weights_are_used_by_every_batch_size():
    spec = make_spec("gru", "continuous")
    fresh, actor = NumpyActor(spec), NumpyActor(spec)
    for seed in (1, 2):
        actor.load(make_model(spec, seed).actor_weights(), seed)
        for num_envs in (2, 5):
            actor.act(*make_inputs(spec, num_envs))
    fresh.load(make_model(spec, 2).actor_weights(), 2)
    for num_envs in (2, 5):
        one, two = (each.act(*make_inputs(spec, num_envs)) for each in (actor, fresh))
        assert all(np.array_equal(*pair) for pair in zip(one[:3], two[:3], strict=True))
