"""A GPU's forward pass: the same answers through pinned memory that is used again and again, and one wait."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_marl.policies import ActorCritic, TorchActor, make_noise
from hpc_marl.policies.exchange import DeviceExchange
from tests.unit.algorithms.sample_batches import make_spec

CPU = torch.device("cpu")
KINDS = {
    "discrete": {},
    "masked": {"has_action_mask": True},
    "continuous": {"num_actions": 0, "action_size": 2},
    "gru": {"recurrent": "gru"},
}


def requests_of(spec, num_envs: int, seed: int):
    rng = np.random.default_rng(seed)
    shape = (num_envs, spec.env.num_agents)
    mask = None
    if spec.env.has_action_mask:
        mask = rng.random((*shape, spec.env.num_actions)) < 0.5
        mask[..., 0] = True
    memory = rng.standard_normal((*shape, spec.memory_size), np.float32) if spec.memory_size else None
    observation = rng.standard_normal((*shape, spec.env.observation_size), np.float32)
    observation.flags.writeable = False
    return observation, mask, memory, make_noise(spec.env, rng, num_envs)


def answers(actor: TorchActor, requests) -> list[np.ndarray]:
    result = actor.act(*requests)
    return [result.action, result.log_prob, *([] if result.memory is None else [result.memory])]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_answered_through_a_devices_memory_is_what_is_answered_without(kind: str):
    spec, waits = make_spec(**KINDS[kind]), []
    here, there = TorchActor(spec), TorchActor(spec)
    there._exchange = DeviceExchange(CPU, lambda: waits.append(1), pin=False)
    for actor in (here, there):
        actor.load(ActorCritic(spec, seed=3).actor_weights(), 1)
    kept = []
    sizes = (3, 8, 2, 30, 1, 30)
    for seed, num_envs in enumerate(sizes):
        requests = requests_of(spec, num_envs, seed)
        expected, found = answers(here, requests), answers(there, requests)
        for one, other in zip(expected, found, strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)
        kept.append((expected, found))
    for expected, found in kept:  # nobody writes into an answer that was given
        assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
    assert len(waits) == len(sizes)


def test_memory_grows_and_is_used_again():
    exchange = DeviceExchange(CPU, lambda: None, pin=False)
    places = set()
    for size in (4, 8, 3, 7):
        array = np.arange(size, dtype=np.float32)
        assert np.array_equal(exchange.send("x", array).numpy(), array)
        places.add(exchange._memory["to x"].data_ptr())
    assert len(places) == 1
    assert exchange.send("x", np.arange(3, dtype=np.uint8)).dtype == torch.uint8
    assert exchange.send("x", np.zeros((0, 2), np.float32)).shape == (0, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_answers_as_the_cpu_does(kind: str):
    spec = make_spec(**KINDS[kind])
    here, there = TorchActor(spec), TorchActor(spec, "cuda")
    for actor in (here, there):
        actor.load(ActorCritic(spec, seed=3).actor_weights(), 1)
    for seed, num_envs in enumerate((3, 30, 7)):
        requests = requests_of(spec, num_envs, seed)
        one, other = answers(here, requests), answers(there, requests)
        if kind == "continuous":
            np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-5)
        else:
            assert (one[0] != other[0]).mean() < 0.02  # a draw may fall on the other side of a rounded bound
        same = (one[0] == other[0]) if kind != "continuous" else np.ones_like(one[1], bool)
        np.testing.assert_allclose(one[1][same], other[1][same], rtol=1e-3, atol=1e-5)
