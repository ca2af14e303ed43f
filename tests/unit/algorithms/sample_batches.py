"""Sample batches of made-up environments that keep the contract of `hpc_marl.data.samples`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hpc_marl.config import PolicyConfig
from hpc_marl.data import EnvSpec, SampleBatch, SampleLayout
from hpc_marl.policies import NumpyActor, PolicySpec, make_noise


def make_spec(recurrent="none", critic="central", num_agents=2, state_size=0, **env) -> PolicySpec:
    """Return a small policy; `env` overrides fields of its EnvSpec."""
    settings = {"observation_size": 5, "num_actions": 3, **env}
    names = tuple(f"agent_{i}" for i in range(num_agents))
    policy = PolicyConfig(hidden_sizes=(12,), critic_hidden_sizes=(10, 8), recurrent=recurrent, memory_size=6)
    return PolicySpec(
        env=EnvSpec(agent_names=names, state_size=state_size, **settings), policy=policy, critic=critic
    )


def make_batch(
    spec: PolicySpec,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    num_steps: int = 16,
    num_envs: int = 6,
    chunk_length: int = 4,
    seed: int = 0,
    end_probability: float = 0.15,
) -> SampleBatch:
    """Let a policy act on random observations; agents end one by one, by termination or truncation.

    Agent 0 is rewarded for action 0 (or for acting upwards), so that there is something to learn.
    """
    env, rng = spec.env, np.random.default_rng(seed)
    layout = SampleLayout(env, num_steps, num_envs, spec.memory_size, chunk_length if spec.memory_size else 1)
    batch, actor = layout.allocate(), NumpyActor(spec)
    actor.load(weights, 3)
    shape = (num_envs, env.num_agents)
    memory = np.zeros((*shape, spec.memory_size), np.float32) if spec.memory_size else None
    batch.observation[:] = rng.standard_normal(batch.observation.shape)
    if batch.state is not None:
        batch.state[:] = rng.standard_normal(batch.state.shape)
    if batch.action_mask is not None:
        batch.action_mask[:] = rng.random(batch.action_mask.shape) < 0.6
        batch.action_mask[..., 1] = True
    batch.alive[0], batch.is_first[0] = True, True
    for t in range(num_steps):
        if memory is not None:
            memory = memory * ~batch.is_first[t][:, None, None]
            if t % chunk_length == 0:
                batch.memory[t // chunk_length] = memory
        mask = None if batch.action_mask is None else batch.action_mask[t]
        result = actor.act(batch.observation[t], mask, memory, make_noise(env, rng, num_envs))
        memory = result.memory
        batch.action[t], batch.log_prob[t], batch.policy_version[t] = result.action, result.log_prob, 3
        alive = batch.alive[t]
        over, kind = alive & (rng.random(shape) < end_probability), rng.random(shape) < 0.5
        batch.terminated[t], batch.truncated[t] = over & kind, over & ~kind
        good = result.action[..., 0] > 0 if env.is_continuous else result.action == 0
        batch.reward[t] = np.where(alive, good, 0.0)
        batch.alive[t + 1] = alive & ~over
        resets = ~alive.any(axis=1)
        batch.alive[t + 1][resets] = True
        batch.is_first[t + 1] = resets
    return batch


def copy_of(batch: SampleBatch) -> SampleBatch:
    """Return a batch with arrays of its own."""
    arrays = {name: array.copy() for name, array in batch.arrays().items()}
    return SampleBatch(**{"state": None, "action_mask": None, "memory": None, **arrays})
