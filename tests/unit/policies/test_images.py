"""Policies for images: sizes, scaling, sharing, acting as the learner computes, learning what an image shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_marl.algorithms.ppo import PPO
from hpc_marl.config import EnvConfig, PolicyConfig, PPOConfig
from hpc_marl.data import EnvSpec, SampleLayout
from hpc_marl.envs import LoopedEnv
from hpc_marl.envs.testing import BrightSide
from hpc_marl.errors import ConfigError
from hpc_marl.policies import (
    ActorCritic,
    NumpyActor,
    PolicySpec,
    TorchActor,
    actor_shapes,
    make_actor,
    make_noise,
)
from hpc_marl.policies import convolutions as convolutions_module
from hpc_marl.policies.precision import network_precision
from hpc_marl.workers.rollout import GroupRollout

torch.set_num_threads(1)


def make_spec(num_agents=2, recurrent="none", critic="local", side=12, state_size=0, **policy):
    settings = {
        "conv_channels": (4, 8),
        "conv_kernels": (4, 3),
        "conv_strides": (2, 1),
        "hidden_sizes": (16,),
        "critic_hidden_sizes": (),
        "activation": "relu",
        "recurrent": recurrent,
        "memory_size": 8,
    }
    env = EnvSpec(
        agent_names=tuple(f"a{n}" for n in range(num_agents)),
        observation_size=2 * side * side,
        image_shape=(2, side, side),
        state_size=state_size,
        num_actions=3,
    )
    return PolicySpec(env=env, policy=PolicyConfig(**{**settings, **policy}), critic=critic)


def make_images(spec, *leading, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (*leading, spec.env.num_agents, spec.env.observation_size), np.uint8
    )


def test_nature_cnn_has_the_sizes_of_the_paper():
    policy = PolicyConfig(
        conv_channels=(32, 64, 64), conv_kernels=(8, 4, 3), conv_strides=(4, 2, 1), hidden_sizes=(512,)
    )
    env = EnvSpec(observation_size=4 * 84 * 84, image_shape=(4, 84, 84), num_actions=6)
    shapes = actor_shapes(PolicySpec(env=env, policy=policy))
    assert shapes["convolutions.0.weight"] == (32, 4, 8, 8)
    assert shapes["torso.0.weight"] == (512, 64 * 7 * 7)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 1_687_206


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize("critic", ["local", "central"])
@pytest.mark.parametrize("critic_hidden_sizes", [(), (6,)])
def test_weights_have_the_promised_names_and_shapes(recurrent, critic, critic_hidden_sizes):
    spec = make_spec(recurrent=recurrent, critic=critic, critic_hidden_sizes=critic_hidden_sizes)
    weights = ActorCritic(spec).actor_weights()
    assert {name: array.shape for name, array in weights.items()} == actor_shapes(spec)
    first = weights["convolutions.1.weight"].reshape(8, -1)
    np.testing.assert_allclose(first @ first.T, 2 * np.eye(8), atol=1e-5)


def test_pixels_are_scaled_to_one_and_reshaped_in_order():
    spec = make_spec(num_agents=1)
    layers = ActorCritic(spec).actor.convolutions
    image = torch.from_numpy(make_images(spec))
    expected = (image.reshape(1, 2, 12, 12) / 255.0).float()
    for layer in layers:
        expected = torch.relu(torch.nn.functional.conv2d(expected, layer.weight, layer.bias, layer.stride))
    torch.testing.assert_close(layers(image), expected.flatten(1))


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize("critic", ["local", "central"])
def test_log_probs_of_the_actor_are_those_the_learner_computes(recurrent, critic):
    spec = make_spec(recurrent=recurrent, critic=critic)
    model, actor = ActorCritic(spec, 5), make_actor(spec)
    assert isinstance(actor, TorchActor)
    actor.load(model.actor_weights(), 1)
    images, noise = make_images(spec, 9), make_noise(spec.env, np.random.default_rng(0), 9)
    memory = np.full((9, 2, 8), 0.1, np.float32) if spec.memory_size else None
    result = actor.act(images, None, memory, noise)
    observation, action = torch.from_numpy(images), torch.from_numpy(result.action).long()
    if recurrent == "gru":
        observation, action = observation.unsqueeze(1), action.unsqueeze(1)
    inputs = model.inputs(observation, memory=None if memory is None else torch.from_numpy(memory))
    log_prob, _, value = model.evaluate_actions(inputs, action)
    np.testing.assert_allclose(log_prob.detach().reshape(9, 2).numpy(), result.log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.values(inputs)[0], value)


def test_a_central_critic_sees_what_all_agents_see_but_the_dead():
    images = make_images(make_spec(), 5)
    others = images.copy()
    others[:, 1] = make_images(make_spec(), 5, seed=1)[:, 1]
    one, two = torch.from_numpy(images), torch.from_numpy(others)
    absent = torch.tensor([[False, True]]).expand(5, 2)
    for hidden in ((), (6,)):
        for critic in ("local", "central"):
            model = ActorCritic(make_spec(critic=critic, critic_hidden_sizes=hidden), 2)
            before, after = model.values(model.inputs(one))[0], model.values(model.inputs(two))[0]
            assert (before[:, 0] != after[:, 0]).any().item() == (critic == "central")
            assert (before[:, 1] != after[:, 1]).any()
            dead = [model.values(model.inputs(images, absent=absent))[0] for images in (one, two)]
            assert torch.equal(*dead)


def test_a_central_critic_reads_the_state_where_there_is_one():
    spec = make_spec(critic="central", state_size=3)
    model, images = ActorCritic(spec, 2), torch.from_numpy(make_images(spec, 5))
    state = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    values = [model.values(model.inputs(images, state=state + shift))[0] for shift in (0.0, 1.0)]
    assert (values[0] != values[1]).all()


def test_many_images_are_convolved_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    spec = make_spec()
    model, images = ActorCritic(spec), torch.from_numpy(make_images(spec, 7, 3))
    whole = model.values(model.inputs(images))[0].detach()
    monkeypatch.setattr(convolutions_module, "_IMAGES_AT_ONCE", 5)
    with torch.no_grad():
        torch.testing.assert_close(model.values(model.inputs(images))[0], whole)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("learns", [True, False])
def test_pixels_are_scaled_to_between_0_and_1(precision, learns):
    """By scaling the first layer's weights; every byte is a whole number in bfloat16, too."""
    spec = make_spec()
    layers = ActorCritic(spec).actor.convolutions
    images = torch.from_numpy(make_images(spec, 7, 3))
    scaled = images.reshape(-1, *spec.env.image_shape).to(torch.float32) / 255
    for layer in layers:
        scaled = torch.relu(layer(scaled))
    expected = scaled.flatten(1).view(*images.shape[:-1], -1)
    with torch.set_grad_enabled(learns), network_precision(torch.device("cpu"), precision):
        found = layers(images)
    assert found.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    allowed = {"rtol": 0.02, "atol": 0.02} if precision == "bf16" else {}
    torch.testing.assert_close(found.to(torch.float32), expected, **allowed)


def test_networks_and_observations_that_do_not_fit_are_refused():
    spec = make_spec()
    with pytest.raises(ConfigError, match=r"images of 2x12x12 pixels.* use policy=nature_cnn"):
        PolicySpec(env=spec.env, policy=PolicyConfig())
    vectors = EnvSpec(observation_size=5, num_actions=3)
    with pytest.raises(ConfigError, match="vectors of 5 numbers and no images; use policy=mlp"):
        PolicySpec(env=vectors, policy=spec.policy)
    with pytest.raises(ConfigError, match="images of 2x8x8 pixels are too small"):
        make_spec(side=8, conv_kernels=(8, 4))
    with pytest.raises(ConfigError, match="have 2, 2 and 1 entries"):
        make_spec(conv_strides=(2,))
    with pytest.raises(ConfigError, match="critic_hidden_sizes=\\[\\]: give at least one"):
        PolicyConfig(critic_hidden_sizes=())
    with pytest.raises(ConfigError, match=r"image_shape=\[2, 12, 12\] must be \[C, H, W\]"):
        EnvSpec(observation_size=5, image_shape=(2, 12, 12), num_actions=3)


def test_images_stay_bytes_until_they_are_convolved():
    spec = make_spec(critic="central")
    images = torch.from_numpy(make_images(spec, 5))
    absent = torch.tensor([[False, True]]).expand(5, 2)
    inputs = ActorCritic(spec).inputs(images, absent=absent)
    assert inputs.own.dtype == torch.uint8 and inputs.state is None
    assert not inputs.own[:, 1].any() and torch.equal(inputs.own[:, 0], images[:, 0])


def test_images_are_stored_as_bytes():
    spec = make_spec().env
    floats = EnvSpec(agent_names=spec.agent_names, observation_size=288, num_actions=3)
    batch = SampleLayout(spec, 4, 3).allocate()
    assert batch.observation.dtype == np.uint8
    assert 3 * SampleLayout(spec, 40, 3).nbytes < SampleLayout(floats, 40, 3).nbytes


@pytest.mark.parametrize(
    ("num_agents", "recurrent", "critic", "mode"),
    [(1, "none", "local", "sync"), (2, "gru", "central", "async")],
)
def test_the_bright_side_is_learned(num_agents, recurrent, critic, mode):
    env = LoopedEnv([BrightSide(num_agents) for _ in range(16)])
    policy = PolicyConfig(
        conv_channels=(8, 8), conv_kernels=(4, 3), conv_strides=(2, 2), hidden_sizes=(32,),
        critic_hidden_sizes=(), activation="relu", recurrent=recurrent, memory_size=16,
    )  # fmt: skip
    config = PPOConfig(
        critic=critic, rollout_length=32, num_epochs=4, num_minibatches=4, learning_rate=3e-3, discount=0.5
    )
    spec = PolicySpec(env=env.spec, policy=policy, critic=critic)
    learner, actor = PPO(config, spec, total_env_steps=100_000, mode=mode, seed=1), make_actor(spec)
    chunk = config.memory_chunk_length if spec.memory_size else 1
    rollout = GroupRollout(env, EnvConfig(), (1,), spec.memory_size, chunk)
    batch = SampleLayout(env.spec, 32, 16, spec.memory_size, chunk).allocate()
    shares = []
    for update in range(18):
        actor.load(learner.actor_weights(), update)
        rollout.begin(batch)
        while not rollout.is_full:
            seen = rollout.inputs()
            answer = actor.act(seen.observation, seen.action_mask, seen.memory, seen.noise)
            rollout.apply(answer.action, answer.log_prob, answer.memory, answer.policy_version)
        rollout.finish()
        learner.update(batch, 0)
        shares.append(batch.reward.sum() / batch.alive[:-1].sum())
    assert np.mean(shares[:2]) < 0.7
    assert np.mean(shares[-3:]) > 0.9, shares


def test_numpy_is_not_for_images():
    with pytest.raises(ConfigError, match="TorchActor"):
        NumpyActor(make_spec())
