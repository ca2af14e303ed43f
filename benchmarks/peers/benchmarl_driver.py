"""BenchMARL's MAPPO on a VMAS task, with our networks, batch, minibatches and epochs.

Its own settings for VMAS make 45 passes over 60,000 steps in minibatches of 4096, which takes minutes per update here:
ours cost it less. Nothing is evaluated, logged or saved.
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
    """Reports after every update."""

    def __init__(self, progress: PeerProgress) -> None:
        super().__init__()
        self._progress = progress

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
    """Return MAPPO with our coefficients."""
    config = MappoConfig.get_from_yaml()
    for name in ("clip_epsilon", "entropy_coef", "critic_coef", "lmbda"):
        setattr(config, name, settings[name])
    return config


def network(sizes: list[int], activation: str) -> MlpConfig:
    """Return a network with these hidden layers."""
    config = MlpConfig.get_from_yaml()
    config.num_cells = sizes
    config.activation_class = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[activation]
    return config


def experiment_settings(settings: dict[str, Any]) -> ExperimentConfig:
    """Return its settings of a run."""
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
