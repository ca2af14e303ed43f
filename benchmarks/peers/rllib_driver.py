"""RLlib's PPO with the settings of its own CartPole example (examples/algorithms/ppo/cartpole_ppo.py), network 64x64.

The example: learning rate 3e-4, 6 epochs, weight of the value loss 0.01, a network shared by both heads.
"""

from __future__ import annotations

import os

from peer_progress import PeerProgress, read_settings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

_WINDOW_EPISODES = 100  # over which its own mean return goes
_NETWORK = {"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh", "vf_share_layers": True}


def main() -> None:
    """Train until the benchmark has seen enough."""
    settings = read_settings()
    ray.init(num_cpus=settings["num_cpus"], include_dashboard=False, log_to_driver=False)
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=settings["num_env_runners"],
            num_envs_per_env_runner=settings["num_envs_per_env_runner"],
        )
        .training(**{"lr": 0.0003, "num_epochs": 6, "vf_loss_coeff": 0.01, **settings["training"]})
        .rl_module(model_config=DefaultModelConfig(**{**_NETWORK, **settings["model"]}))
        .debugging(seed=settings["seed"], log_level="ERROR")
    )
    algorithm = config.build_algo()
    progress = PeerProgress(settings)
    progress.started()
    going_on = True
    while going_on:
        result = algorithm.train()["env_runners"]
        if "episode_return_mean" in result:
            for _ in range(_WINDOW_EPISODES):
                progress.episode(result["episode_return_mean"])
        going_on = progress.update(int(result["num_env_steps_sampled_lifetime"]))
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
