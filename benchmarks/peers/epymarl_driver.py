"""EPyMARL's MAPPO with its own settings (src/config/algs/mappo.yaml) on Gymnasium's multi-agent environments.

Its main script is run unchanged; what its runner logs about training comes here, too. Its own settings are ten
environments in processes of their own, a GRU of 128 and four epochs; `arguments` may say otherwise.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peer_progress import PeerProgress, read_settings


class WatchedEnoughError(SystemExit):
    """Ends the script's loop."""


def main() -> None:
    """Train until the benchmark has seen enough."""
    settings = read_settings()
    torch.set_num_threads(settings["num_threads"])
    source = Path(settings["source"]) / "src"
    sys.path.insert(0, str(source))
    sys.modules["smaclite"] = ModuleType("smaclite")  # is imported whatever the environment, and not on PyPI
    watch(PeerProgress(settings))
    results = f"local_results_path={settings['directory']}"
    sys.argv = [
        *(str(source / "main.py"), "--config=mappo", "--env-config=gymma", "with"),
        *(f"env_args.key={settings['env_id']}", f"env_args.time_limit={settings['time_limit']}"),
        *(f"seed={settings['seed']}", "use_cuda=False", "runner_log_interval=1", results),
        *settings["arguments"],
    ]
    runpy.run_path(sys.argv[0], run_name="__main__")


def watch(progress: PeerProgress) -> None:
    """Let its logger report to `progress`; testing, which is no training, is left out."""
    from runners import REGISTRY
    from utils.logging import Logger

    log_stat = Logger.log_stat
    started: list[bool] = []

    def reporting_log_stat(logger: Any, key: str, value: Any, t: int, to_sacred: bool = True) -> None:
        if key == "return_mean":
            progress.episode(float(value))
            if not progress.update(t):
                raise WatchedEnoughError(0)
        log_stat(logger, key, value, t, to_sacred)

    Logger.log_stat = reporting_log_stat
    runner_class = REGISTRY["parallel"]
    run = runner_class.run

    def training_run(runner: Any, test_mode: bool = False) -> Any:
        if test_mode:
            return None
        if not started:
            started.append(True)
            progress.started()
        return run(runner, test_mode=False)

    runner_class.run = training_run


if __name__ == "__main__":
    main()
