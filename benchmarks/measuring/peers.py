"""Other systems: where they are installed, what they are asked to train, and a run of one of them.

Each has a virtual environment of its own (benchmarks/peers/install.py) and a driver, which calls it by its public
interface and reports rows of metrics like ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from measuring.watching import RowFile, Watched, watch

BENCHMARKS = Path(__file__).resolve().parents[1]
PEERS = BENCHMARKS.parent / ".peers"
DRIVERS = BENCHMARKS / "peers"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_TAIL_LINES = 15


class PeerError(Exception):
    """A peer did not train; the message holds the end of what it printed."""


@dataclass(frozen=True)
class Peer:
    """One system with one choice of settings.

    Attributes:
        title: as the table names it.
        name: of its virtual environment below .peers, and of its driver.
        settings: what its driver is told.
        takes_minutes: for one update: its rate is that of the few that there are, and --quick leaves it out.
    """

    title: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_minutes: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether the installer came to its end."""
        return (PEERS / self.name / "installed").exists()

    @property
    def how_to_install(self) -> str:
        """What to do about it where it is not."""
        return f"{self.title} is not installed: run python benchmarks/peers/install.py {self.name}"


def run_peer(peer: Peer, seed: int, goal: float | None, min_s: float, max_s: float) -> Watched:
    """Train until `goal` is held and `min_s` are over since the first environment step, at most `max_s`.

    Raises:
        PeerError: it failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        progress = Path(directory) / "progress.jsonl"
        told = {"seed": seed, "goal": goal, "min_s": min_s, "max_s": max_s, "num_threads": 1}
        told |= {"progress": str(progress), "directory": directory, "source": str(PEERS / "src" / peer.name)}
        python = PEERS / peer.name / "bin" / "python"
        driver = DRIVERS / f"{peer.name}_driver.py"
        command = [str(python), str(driver), json.dumps({**told, **peer.settings})]
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": str(BENCHMARKS)}
        # Some leave in their temporary directory what nobody needs.
        environment |= {"TMPDIR": directory, "RAY_TMPDIR": directory}
        output = Path(directory) / "output.txt"
        started_s = time.monotonic()
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            try:
                seen, cpu_points = watch(process, RowFile(progress), lambda _: "peer")
            finally:
                _end(process)
        rows = [row for _, row in seen]
        if process.returncode or not rows:
            tail = "\n".join(output.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:])
            raise PeerError(f"{peer.title}: exit code {process.returncode}\n{tail}")
    return Watched(started_s, rows[0]["first_step_s"], rows[1:], cpu_points)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a peer and all its processes, where it was interrupted."""
    if process.poll() is not None:
        return
    for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
        one.kill()
    process.wait()
