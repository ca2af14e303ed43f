"""BenchMARL's MAPPO on a VMAS task, with the networks, batch, minibatches and epochs that it is told.

Returns are noted when samples have been collected, before they are learned from: as sums over the agents, as ours are.
Nothing is evaluated, logged or saved.
"""

from __future__ import annotations

from typing import Any

import torch
from benchmarl.algorithms import MappoConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from peer_progress import PeerProgress, read_settings
from tensordict import TensorDictBase


class WatchedEnoughError(Exception):
    """Ends the experiment's loop."""


class Watcher(Callback):
    """Reports returns after every collection, and how far it is after every update."""

    def __init__(self, progress: PeerProgress) -> None:
        super().__init__()
        self._progress = progress

    def on_batch_collected(self, batch: TensorDictBase) -> None:
        """Note the episodes that have ended; every agent is paid a reward of its own."""
        for group in self.experiment.group_map:
            returns = batch.get(("next", group, "episode_reward")).sum(-2)  # [E, T, 1]
            for episode_return in returns[batch.get(("next", "done"))].tolist():
                self._progress.episode(episode_return)

    def on_train_end(self, training_td: TensorDictBase, group: str) -> None:
        """Note how far it is, and end it where enough has been seen."""
        if not self._progress.update(self.experiment.total_frames):
            raise WatchedEnoughError


def main() -> None:
    """Train until the benchmark has seen enough."""
    settings = read_settings()
    torch.set_num_threads(settings["num_threads"])
    progress = PeerProgress(settings)
    experiment = Experiment(
        task=VmasTask[settings["task"]].get_from_yaml(),
        algorithm_config=algorithm(settings),
        model_config=network(settings["hidden_sizes"], settings["activation"]),
        critic_model_config=network(settings["critic_hidden_sizes"], settings["activation"]),
        seed=settings["seed"],
        config=experiment_settings(settings),
        callbacks=[Watcher(progress)],
    )
    progress.started()
    try:
        experiment.run()
    except WatchedEnoughError:
        return


def algorithm(settings: dict[str, Any]) -> MappoConfig:
    """Return MAPPO with these coefficients; its own where nothing is said."""
    config = MappoConfig.get_from_yaml()
    for name in ("clip_epsilon", "entropy_coef", "critic_coef", "lmbda"):
        if name in settings:
            setattr(config, name, settings[name])
    return config


def network(sizes: list[int], activation: str) -> MlpConfig:
    """Return a network with these hidden layers."""
    config = MlpConfig.get_from_yaml()
    config.num_cells = sizes
    config.activation_class = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[activation]
    return config


def experiment_settings(settings: dict[str, Any]) -> ExperimentConfig:
    """Return BenchMARL's words for the settings of a run."""
    config = ExperimentConfig.get_from_yaml()
    config.on_policy_n_envs_per_worker = settings["num_envs"]
    config.on_policy_collected_frames_per_batch = settings["num_envs"] * settings["rollout_length"]
    config.on_policy_n_minibatch_iters = settings["num_epochs"]
    config.on_policy_minibatch_size = settings["minibatch_size"]
    config.lr, config.gamma = settings["learning_rate"], settings["discount"]
    config.clip_grad_val = settings["max_grad_norm"]
    config.max_n_frames = settings["total_env_steps"]
    config.evaluation = config.render = config.create_json = False
    config.loggers, config.save_folder = [], settings["directory"]
    return config


if __name__ == "__main__":
    main()
