"""How much memory an actor process takes: proportional set size (PSS) and what is its own, in MB.

    hpc-marl train ...  two actors; once they have sent batches for a while, /proc/PID/smaps_rollup is read

PSS counts a page that several processes share by its share: libraries, and what a worker has from the process that
started it. An actor that acts in numpy never loads torch; this is checked. About a minute on two cores:

    python benchmarks/actor_memory.py [--quick] [--repeats N] [--seconds S]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from measuring.comparisons import verdict
from measuring.reporting import machine_facts, markdown_table

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE, read_metrics

GOAL_MB = 120.0
HEADER = (
    "what",
    "PSS",
    "lowest to highest",
    "its own",
    "resident",
    "torch",
    "of the goal",
    "goal",
    "in words",
)
CASES = {
    "CartPole, inline": ("experiment=cartpole_ppo",),
    "LBF, inline": ("experiment=lbf_mappo",),
    "MPE, inline": ("experiment=mpe_spread_mappo",),
    "CartPole vectorised, inline": ("experiment=cartpole_vector_ppo",),
    "LBF, remote": ("experiment=lbf_mappo", "inference=remote"),
}
_START_S, _STOP_S, _POLL_S = 60.0, 60.0, 0.1


class Memory(NamedTuple):
    """Of one process, in MB."""

    pss: float
    own: float
    """Anonymous pages that no other process has."""
    resident: float
    has_torch: bool


def memory_of(pid: int) -> Memory:
    """Read it from /proc."""
    process = Path("/proc", str(pid))
    text = (process / "smaps_rollup").read_text("utf-8")
    kilobytes = {name: int(number) for name, number in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    has_torch = "libtorch" in (process / "maps").read_text("utf-8")
    sizes = (kilobytes[name] / 1024 for name in ("Pss", "Private_Dirty", "Rss"))
    return Memory(*sizes, has_torch)


@contextmanager
def training(overrides: Sequence[str], root: Path) -> Iterator[RunDirectory]:
    """Train with two actors until the block ends."""
    names = [f"root={root}", "experiment_name=benchmark", "trial_name=run"]
    command = [sys.executable, "-m", "hpc_marl.train", "total_env_steps=1_000_000_000", *names, *overrides]
    with open(root / "output.txt", "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield RunDirectory(root, "benchmark", "run")
        finally:
            process.terminate()
            process.wait(_STOP_S)


def measure(overrides: Sequence[str], seconds: float) -> list[Memory]:
    """Return the memory of every actor after it has worked for some seconds."""
    with tempfile.TemporaryDirectory() as root, training(overrides, Path(root)) as directory:
        deadline = time.monotonic() + _START_S
        while not _has_learned(directory):
            if time.monotonic() > deadline:
                raise TimeoutError(Path(root, "output.txt").read_text("utf-8")[-2000:])
            time.sleep(_POLL_S)
        time.sleep(seconds)
        logs = sorted((directory.logs / "actor").glob("*.log"))
        serving = [re.search(r"actor/\d+ pid (\d+) serves", log.read_text("utf-8")) for log in logs]
        return [memory_of(int(found.group(1))) for found in serving if found is not None]


def _has_learned(directory: RunDirectory) -> bool:
    file = directory.metrics / METRICS_FILE
    return file.exists() and len(read_metrics(file)) >= 2


def cells(name: str, found: Sequence[Memory]) -> list[str]:
    """Return the row of one case."""
    pss = [one.pss for one in found]
    return [
        *(name, f"{median(pss):.0f}", f"{min(pss):.0f} to {max(pss):.0f}"),
        f"{median(one.own for one in found):.0f}",
        f"{median(one.resident for one in found):.0f}",
        "loaded" if any(one.has_torch for one in found) else "not loaded",
        f"{median(pss) / GOAL_MB:.2f}",
        f"<= {GOAL_MB:g}",
        verdict(max(pss), GOAL_MB),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="interleaved repeats (default 2)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of work before the look (default 3)")
    parser.add_argument("--quick", action="store_true", help="a fast look: one case, once")
    options = parser.parse_args(arguments)
    cases = dict(list(CASES.items())[: 1 if options.quick else None])
    found: dict[str, list[Memory]] = {name: [] for name in cases}
    for repeat in range(1 if options.quick else options.repeats):
        for name, overrides in cases.items():
            print(f"repeat {repeat + 1}: {name}", file=sys.stderr)
            found[name] += measure(overrides, 0.5 if options.quick else options.seconds)
    print(machine_facts())
    print("\nMemory of one actor process, MB:\n")
    print(markdown_table(HEADER, [cells(name, memories) for name, memories in found.items()]))


if __name__ == "__main__":
    main()
