"""stable-baselines3's PPO: on CartPole, on Gymnasium's multi-agent environments, and by SuperSuit on PettingZoo's.

`model` holds PPO's arguments, but batch_size may follow from `minibatches`; `schedules` names those that fall linearly
to 0 over `total_env_steps`. Agents of a multi-agent environment are
environments of their own with shared parameters and, as it knows no other, a local critic.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium
import torch
from peer_progress import PeerProgress, read_settings
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from tuple_agents import AgentsAsEnvs


def main() -> None:
    """Train until the benchmark has seen enough."""
    settings = read_settings()
    torch.set_num_threads(settings["num_threads"])
    envs, num_agents = make_envs(settings)
    arguments = dict(settings["model"])
    if "minibatches" in settings:
        arguments["batch_size"] = arguments["n_steps"] * envs.num_envs // settings["minibatches"]
    for name in settings["schedules"]:
        arguments[name] = LinearSchedule(arguments[name], 0.0, 1.0)
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[settings["activation"]]
    policy = {"net_arch": settings["net_arch"], "activation_fn": activation}
    set_random_seed(settings["seed"])  # not PPO's own seed: SuperSuit's environments cannot be seeded
    model = PPO("MlpPolicy", envs, policy_kwargs=policy, device="cpu", **arguments)
    model.learn(settings["total_env_steps"] * num_agents, callback=Watcher(settings, num_agents))
    envs.close()


def make_envs(settings: dict[str, Any]) -> tuple[VecEnv, int]:
    """Return the environments, with returns noted in `info`, and how many agents share one."""
    for module in settings["imports"]:
        importlib.import_module(module)
    num_envs, seed = settings["num_envs"], settings["seed"]
    if "pettingzoo" in settings:
        return pettingzoo_envs(settings["pettingzoo"], settings["env_arguments"], num_envs)
    env_id, arguments = settings["env_id"], settings["env_arguments"]
    if isinstance(gymnasium.make(env_id, **arguments).action_space, gymnasium.spaces.Tuple):
        singles = [gymnasium.make(env_id, disable_env_checker=True, **arguments) for _ in range(num_envs)]
        agents = AgentsAsEnvs(singles, seed)
        return VecMonitor(agents), agents.num_agents
    return make_vec_env(env_id, n_envs=num_envs, seed=seed, env_kwargs=arguments), 1


def pettingzoo_envs(path: str, arguments: dict[str, Any], num_envs: int) -> tuple[VecEnv, int]:
    """Return a PettingZoo parallel environment as SuperSuit's documentation makes it one for this library."""
    import supersuit

    module, _, name = path.rpartition(".")
    env = getattr(importlib.import_module(module), name)(**arguments)
    num_agents = len(env.possible_agents)
    vector = supersuit.pettingzoo_env_to_vec_env_v1(env)
    vector = supersuit.concat_vec_envs_v1(vector, num_envs, num_cpus=1, base_class="stable_baselines3")
    return VecMonitor(vector), num_agents


class Watcher(BaseCallback):
    """Reports whenever a rollout begins, which is when the one before has been learned from."""

    def __init__(self, settings: dict[str, Any], num_agents: int) -> None:
        super().__init__()
        self._progress = PeerProgress(settings)
        self._num_agents = num_agents
        self._going_on = True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._going_on = self._progress.update(self.num_timesteps // self._num_agents)
        else:
            self._progress.started()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._progress.episode(info["episode"]["r"])
        return self._going_on


if __name__ == "__main__":
    main()
