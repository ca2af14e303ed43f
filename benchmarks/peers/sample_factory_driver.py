"""Sample Factory's asynchronous PPO with the command line that its own CartPole example gives, network 64x64 tanh.

The example (sf_examples/train_gym_env.py): 20 environments per worker, no recurrence, no V-trace, batches of 512,
rewards scaled by 0.1. Its number of workers is the number of cores; `arguments` may say otherwise.
"""

from __future__ import annotations

from typing import Any

from peer_progress import PeerProgress, read_settings
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.utils.misc import EPISODIC
from sample_factory.train import make_runner
from sf_examples.train_gym_env import parse_custom_args, register_custom_components

_EXAMPLE = [
    "--algo=APPO", "--env=CartPole-v1", "--use_rnn=False", "--num_envs_per_worker=20", "--recurrence=1",
    "--policy_workers_per_policy=2", "--with_vtrace=False", "--batch_size=512", "--reward_scale=0.1",
]  # fmt: skip
_NETWORK = ["--encoder_mlp_layers", "64", "64", "--nonlinearity=tanh"]


class Watcher(AlgoObserver):
    """Reports every training step to the driver."""

    def __init__(self, progress: PeerProgress) -> None:
        self._progress = progress
        self._is_started = False

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Note how far it is, and let it end where enough has been seen.

        It says nothing when sampling begins, only seconds before, when processes are started: its first batch of 512
        steps, a fraction of a second later, stands for it.
        """
        if not self._is_started:
            self._is_started = True
            self._progress.started()
        if runner.env_steps and not self._progress.update(sum(runner.env_steps.values())):
            runner.cfg.train_for_env_steps = 0

    def episode(self, runner: Runner, message: dict[str, Any], policy_id: int) -> None:
        """Note an episode's return."""
        self._progress.episode(float(message[EPISODIC]["reward"]))


def main() -> None:
    """Train until the benchmark has seen enough."""
    settings = read_settings()
    register_custom_components()
    own = [
        "--device=cpu", f"--seed={settings['seed']}", f"--train_dir={settings['directory']}", "--experiment=run",
        "--restart_behavior=overwrite", "--train_for_env_steps=1000000000",
    ]  # fmt: skip
    _, runner = make_runner(parse_custom_args([*_EXAMPLE, *_NETWORK, *own, *settings["arguments"]]))
    watcher = Watcher(PeerProgress(settings))
    runner.register_observer(watcher)
    runner.register_episodic_stats_handler(watcher.episode)
    if runner.init() or runner.run():
        raise SystemExit("Sample Factory failed")


if __name__ == "__main__":
    main()
