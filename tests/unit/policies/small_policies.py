"""Small policies of every kind, and something for them to look at."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from hpc_marl.config import PolicyConfig
from hpc_marl.data import EnvSpec
from hpc_marl.policies import ActorCritic, PolicySpec, make_noise

ACTIONS = {
    "discrete": {"num_actions": 5},
    "masked": {"num_actions": 5, "has_action_mask": True},
    "continuous": {"action_size": 3},
}
torch.set_num_threads(1)  # as workers do: on small tensors a second thread only gets in the way

KINDS = list(itertools.product(["none", "gru"], ACTIONS, [True, False]))


def make_spec(recurrent="none", actions="discrete", agent_id=True, activation="tanh", critic="local", **env):
    settings = {"agent_names": ("a", "b", "c"), "observation_size": 6, **ACTIONS[actions], **env}
    policy = PolicyConfig(
        hidden_sizes=(16, 12),
        critic_hidden_sizes=(10,),
        recurrent=recurrent,
        memory_size=8,
        agent_id=agent_id,
        activation=activation,
        initial_log_std=-0.3,
    )
    return PolicySpec(env=EnvSpec(**settings), policy=policy, critic=critic)


def make_model(spec, seed=3):
    """Return a model whose every weight, zero biases included, is somewhere."""
    model = ActorCritic(spec, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def make_inputs(spec, num_envs, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_envs, spec.env.num_agents)
    mask = None
    if spec.env.has_action_mask:
        mask = rng.random((*shape, spec.env.num_actions)) < 0.5
        mask[..., 2] = True
    memory = rng.standard_normal((*shape, spec.memory_size), dtype=np.float32) if spec.memory_size else None
    observation = rng.standard_normal((*shape, spec.env.observation_size), dtype=np.float32)
    return observation, mask, memory, make_noise(spec.env, rng, num_envs)
