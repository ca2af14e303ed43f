"""The peer: stable-baselines3's PPO on the same task, with the same networks, batch and epochs, in one process.

argv[1] is JSON: overrides, seed. Prints its progress as JSON: [time_s, env_steps, {"peer": cpu_s}] per update.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import ExperimentConfig


def main(overrides: Sequence[str], seed: int) -> None:
    """Train and report."""
    config = compose_experiment(overrides)
    torch.set_num_threads(1)
    envs = make_envs(config, seed)
    num_agents = envs.num_agents if isinstance(envs, AgentsAsEnvs) else 1
    clock = UpdateClock(num_agents)
    model = make_model(config, envs, seed)
    model.learn(config.total_env_steps * num_agents, callback=clock)
    envs.close()
    print(json.dumps(clock.points))


def make_envs(config: ExperimentConfig, seed: int) -> VecEnv:
    """Return as many environments as our actors have together, each agent as an environment of its own."""
    for module in config.env.imports:
        importlib.import_module(module)
    env_id, num_envs = config.env.make["id"], config.actors.count * config.actors.num_envs
    if isinstance(gymnasium.make(env_id).action_space, gymnasium.spaces.Tuple):
        singles = [gymnasium.make(env_id, disable_env_checker=True) for _ in range(num_envs)]
        return AgentsAsEnvs(singles, seed)
    return make_vec_env(env_id, n_envs=num_envs, seed=seed)


def make_model(config: ExperimentConfig, envs: VecEnv, seed: int) -> PPO:
    """Return PPO with our settings; a central critic, which it does not have, becomes a local one."""
    ppo, policy = config.algorithm, config.policy
    return PPO(
        "MlpPolicy",
        envs,
        learning_rate=ppo.learning_rate,
        n_steps=ppo.rollout_length,
        batch_size=ppo.rollout_length * envs.num_envs // ppo.num_minibatches,
        n_epochs=ppo.num_epochs,
        gamma=ppo.discount,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_eps,
        ent_coef=ppo.entropy_coef,
        vf_coef=ppo.value_coef,
        max_grad_norm=ppo.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(policy.hidden_sizes), "vf": list(policy.critic_hidden_sizes)},
            "activation_fn": torch.nn.Tanh if policy.activation == "tanh" else torch.nn.ReLU,
        },
        seed=seed,
        device="cpu",
    )


class UpdateClock(BaseCallback):
    """Notes time, environment steps and CPU time whenever a rollout begins, and at the end."""

    def __init__(self, num_agents: int) -> None:
        super().__init__()
        self.points: list[tuple[float, float, dict[str, float]]] = []
        self._num_agents = num_agents

    def _on_rollout_start(self) -> None:
        env_steps = self.num_timesteps / self._num_agents
        self.points.append((time.perf_counter(), env_steps, {"peer": time.process_time()}))

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True


class AgentsAsEnvs(VecEnv):
    """Gymnasium environments with Tuple spaces: row e * N + n is agent n of environment e, rewarded as a team."""

    def __init__(self, envs: Sequence[Any], seed: int) -> None:
        observations, actions = envs[0].observation_space, envs[0].action_space
        assert isinstance(observations, gymnasium.spaces.Tuple)
        assert isinstance(actions, gymnasium.spaces.Tuple)
        self.num_agents = len(observations)
        self._envs, self._first_seed = list(envs), seed
        self._row_shape: tuple[int, ...] = observations[0].shape or ()
        self._actions: list[list[int]] = []
        super().__init__(len(envs) * self.num_agents, observations[0], actions[0])

    def reset(self) -> NDArray[Any]:
        """Begin an episode everywhere."""
        first = [env.reset(seed=self._first_seed + e)[0] for e, env in enumerate(self._envs)]
        return np.concatenate([np.stack(rows) for rows in first])

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions."""
        self._actions = actions.reshape(-1, self.num_agents).tolist()

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """Step every environment; one whose episode is over begins another."""
        shape = (len(self._envs), self.num_agents)
        observations = np.empty((*shape, *self._row_shape), np.float32)
        rewards, dones = np.empty(shape, np.float32), np.zeros(shape, np.bool_)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for e, env in enumerate(self._envs):
            observation, reward, terminated, truncated, _ = env.step(tuple(self._actions[e]))
            rewards[e] = sum(reward)
            if terminated or truncated:
                dones[e] = True
                for n in range(self.num_agents):
                    infos[e * self.num_agents + n] = {
                        "terminal_observation": observation[n],
                        "TimeLimit.truncated": truncated and not terminated,
                    }
                observation, _ = env.reset()
            observations[e] = observation
        flat = observations.reshape(self.num_envs, *self._row_shape)
        return flat, rewards.ravel(), dones.ravel(), infos

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of each row's environment."""
        return [getattr(self._envs[row // self.num_agents], attr_name) for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: PPO does not need it."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: PPO does not need it."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No row is wrapped."""
        return [False for _ in self._get_indices(indices)]


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
