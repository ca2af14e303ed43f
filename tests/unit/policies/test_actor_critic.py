"""ActorCritic: who sees what, and recurrent memory over sequences."""

from __future__ import annotations

import pytest
import torch

from hpc_marl.policies import ActorCritic, NumpyActor
from hpc_marl.policies.distributions import categorical, gaussian, mask_logits
from tests.unit.policies.small_policies import make_inputs, make_model, make_spec


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_categorical_is_that_of_torch_distributions():
    logits, action = random(7, 3, 5), torch.randint(5, (7, 3), generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Categorical(logits=logits)
    log_prob, entropy = categorical(logits, action)
    torch.testing.assert_close(log_prob, expected.log_prob(action))
    torch.testing.assert_close(entropy, expected.entropy())


def test_masked_entropy_is_that_of_the_allowed_actions():
    logits = random(1, 4).requires_grad_()
    mask = torch.tensor([[True, False, True, False]])
    log_prob, entropy = categorical(mask_logits(logits, mask), torch.tensor([2]))
    allowed = torch.distributions.Categorical(logits=logits[:, [0, 2]])
    torch.testing.assert_close(log_prob, allowed.log_prob(torch.tensor([1])))
    torch.testing.assert_close(entropy, allowed.entropy())
    (log_prob + entropy).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, [1, 3]].eq(0).all()
    single = mask_logits(logits.detach(), torch.tensor([[False, True, False, False]]))
    assert categorical(single, torch.tensor([1]))[1].item() == 0.0


def test_gaussian_is_that_of_torch_distributions():
    mean, log_std, action = random(7, 3, 2), torch.tensor([-0.7, 0.4]), random(7, 3, 2, seed=1)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    log_prob, entropy = gaussian(mean, log_std, action)
    torch.testing.assert_close(log_prob, normal.log_prob(action))
    torch.testing.assert_close(entropy, normal.entropy())


@pytest.mark.parametrize("state_size", [0, 4])
def test_a_central_critic_sees_more_than_a_local_one(state_size):
    observation, state = random(2, 3, 6), random(2, 4, seed=1) if state_size else None
    others = observation.clone()
    others[:, 1] += 1.0  # agent b looks elsewhere
    for critic in ("local", "central"):
        model = make_model(make_spec(critic=critic, state_size=state_size))
        before = model.values(model.inputs(observation, state=state))[0]
        after = model.values(model.inputs(others, state=state))[0]
        assert before.shape == (2, 3)
        sees_others = critic == "central" and not state_size
        assert (before[:, 0] != after[:, 0]).all().item() == sees_others
        assert (before[:, 1] != after[:, 1]).all()
        if state_size:
            moved = model.values(model.inputs(observation, state=state + 1.0))[0]
            assert (moved != before).all().item() == (critic == "central")


@pytest.mark.parametrize("state_size", [0, 4])
def test_dead_agents_are_seen_by_nobody(state_size):
    model = make_model(make_spec(critic="central", state_size=state_size))
    state = random(2, 4, seed=1) if state_size else None
    absent = torch.tensor([[False, True, False], [False, False, False]])
    observation = random(2, 3, 6)
    garbage = observation.clone()
    garbage[0, 1] = float("nan")
    clean = model.values(model.inputs(observation, state=state, absent=absent))[0]
    dirty = model.values(model.inputs(garbage, state=state, absent=absent))[0]
    assert torch.equal(clean, dirty)
    dead = model.values(
        model.inputs(observation + 1.0, state=None if state is None else state + 1.0, absent=absent)
    )[0]
    assert dead[0, 1] == clean[0, 1], "of a dead agent only the id counts"
    assert (dead[1] != clean[1]).all()
    nobody = model.values(model.inputs(observation, state=state, absent=torch.zeros_like(absent)))[0]
    torch.testing.assert_close(nobody, model.values(model.inputs(observation, state=state))[0])


def test_agents_with_ids_can_differ():
    same = random(1, 1, 6).expand(1, 3, 6)
    for agent_id in (True, False):
        model = make_model(make_spec(agent_id=agent_id, critic="central"))
        value = model.values(model.inputs(same))[0]
        assert (value[0, 0] != value[0, 1]).item() == agent_id


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_a_sequence_is_what_the_actor_remembers_step_by_step(actions):
    spec = make_spec("gru", actions)
    model, actor = make_model(spec), NumpyActor(spec)
    actor.load(model.actor_weights(), 0)
    num_envs, length = 4, 7
    memory = start = make_inputs(spec, num_envs)[2]
    is_first = torch.zeros(num_envs, length, dtype=torch.bool)
    is_first[1, 3] = is_first[2, 0] = True
    steps = []
    for t in range(length):
        observation, _, _, noise = make_inputs(spec, num_envs, seed=t)
        memory = memory * ~is_first[:, t].numpy()[:, None, None]
        result = actor.act(observation, None, memory, noise)
        memory = result.memory
        steps.append((observation, result))
    observation = torch.stack([torch.from_numpy(step[0]) for step in steps], dim=1)
    action = torch.stack([torch.from_numpy(step[1].action) for step in steps], dim=1)
    inputs = model.inputs(observation, memory=torch.from_numpy(start), is_first=is_first)
    log_prob, _, value = model.evaluate_actions(inputs, action if actions == "continuous" else action.long())
    expected = torch.stack([torch.from_numpy(step[1].log_prob) for step in steps], dim=1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-5, atol=1e-5)
    value_again, last_memory = model.values(inputs)
    assert torch.equal(value, value_again)
    torch.testing.assert_close(last_memory, torch.from_numpy(memory), rtol=1e-5, atol=1e-5)


def test_initial_weights_follow_from_the_seed_alone():
    spec = make_spec("gru", critic="central")
    torch.manual_seed(1)
    one, state = ActorCritic(spec, seed=5).state_dict(), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), (
        "making networks must not touch torch's global random state"
    )
    two, other = ActorCritic(spec, seed=5).state_dict(), ActorCritic(spec, seed=6).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["actor.torso.0.weight"], other["actor.torso.0.weight"])


def test_initial_weights_are_orthogonal():
    state = ActorCritic(make_spec("gru")).state_dict()
    torso = state["actor.torso.1.weight"]
    torch.testing.assert_close(torso @ torso.T, 2.0 * torch.eye(12), atol=1e-5, rtol=0)
    head = state["actor.head.weight"]
    torch.testing.assert_close(head @ head.T, 1e-4 * torch.eye(5), atol=1e-8, rtol=0)
    assert all(tensor.eq(0).all() for name, tensor in state.items() if "bias" in name)
