"""CleanRL's ppo.py, as it is, with its defaults: four environments and a network of 64x64 tanh for each of both heads.

The script is run unchanged; what it would write to TensorBoard comes here instead, which also costs it less.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard
from peer_progress import PeerProgress, read_settings


class WatchedEnoughError(Exception):
    """Ends the script's loop."""


def main() -> None:
    """Train until the benchmark has seen enough."""
    settings = read_settings()
    torch.set_num_threads(settings["num_threads"])
    torch.utils.tensorboard.SummaryWriter = summary_writer(PeerProgress(settings))
    script = Path(settings["source"]) / "cleanrl" / "ppo.py"
    sys.argv = [str(script), "--no-cuda", f"--seed={settings['seed']}", *settings["arguments"]]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except WatchedEnoughError:
        return


def summary_writer(progress: PeerProgress) -> type:
    """Return a stand-in for TensorBoard's writer that reports to `progress`."""

    class Writer:
        def __init__(self, directory: str) -> None:
            """Be made before the first environment step."""

        def add_text(self, tag: str, text: str) -> None:
            progress.started()  # the last thing before environments are made

        def add_scalar(self, tag: str, value: Any, step: int) -> None:
            if tag == "charts/episodic_return":
                progress.episode(float(value))
            elif tag == "charts/SPS" and not progress.update(step):
                raise WatchedEnoughError

        def close(self) -> None:
            """Have nothing to close."""

    return Writer


if __name__ == "__main__":
    main()
