"""How training scales when two trainers on one host share it: real processes.

    by hand    one exchange of the flat gradient per minibatch, by shared memory (feed-forward policies on the CPU)
    autograd   torch's DistributedDataParallel by gloo over loopback (all other policies)

Every process learns from batches of its own, [64 steps x 64 environments] of CartPole's size, actor and critic of
64 x 64 tanh, four epochs of four minibatches; one minibatch is the union of the processes'. With perfect scaling two
processes take half of one's time per sample. `exchange` is the share of the time that a process spends in exchanges,
its wait for the other one included; DistributedDataParallel exchanges while it computes, and is not told apart.
Processes take turns by number and kind; ratios are taken within a repeat, then their median. Needs as many free cores
as processes. About a minute:

    python benchmarks/data_parallel.py [--quick] [--processes 2] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measuring.comparisons import Comparison, comparison_table
from measuring.reporting import machine_facts, markdown_table
from ppo_update import make_batch

from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.config import PolicyConfig, PPOConfig
from hpc_marl.data import EnvSpec
from hpc_marl.policies import PolicySpec
from hpc_marl.workers.rendezvous import join

_KINDS = {"by hand": FlatSteps, "autograd": AutogradSteps}
_NUM_STEPS, _NUM_ENVS = 64, 64
_GOAL = 1 / 1.8  # of one process's time per sample: 1.8 times as fast
_TIMEOUT_S = 60.0
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Rank:
    """One process of a group, seen from the script that started it.

    Args:
        kind: of steps.
        rank: of this process.
        size: processes in the group.
        directory: of the group.
    """

    def __init__(self, kind: str, rank: int, size: int, directory: Path) -> None:
        word = json.dumps({"kind": kind, "rank": rank, "size": size, "directory": str(directory)})
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--rank", word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_THREADS},
        )

    def tell(self, num_updates: int) -> None:
        """Let it begin; `heard` says what it found."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_updates}\n")
        self._process.stdin.flush()

    def heard(self) -> dict[str, float]:
        """Wait for its answer: seconds of all, and of exchanges.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with exit code {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def be_rank(kind: str, rank: int, size: int, directory: str) -> None:
    """Update as often as each line of stdin says, until it ends."""
    torch.set_num_threads(1)
    spec = PolicySpec(env=EnvSpec(observation_size=4, num_actions=2), policy=PolicyConfig())
    with FileNameResolver(Path(directory) / "names") as resolver:
        ranks = Ranks() if size == 1 else _join(resolver, rank, size)
        exchange = _time_exchanges(ranks)
        ppo = PPO(PPOConfig(), spec, total_env_steps=10**9, steps=_KINDS[kind], ranks=ranks)
        batch = make_batch(_NUM_STEPS, _NUM_ENVS)
        for line in sys.stdin:
            exchange[0], started_s = 0.0, time.perf_counter()
            for _ in range(int(line)):
                ppo.update(batch, 0)
            print(json.dumps({"all": time.perf_counter() - started_s, "exchange": exchange[0]}), flush=True)
        ranks.close()


def _join(resolver: FileNameResolver, rank: int, size: int) -> Ranks:
    context: Any = SimpleNamespace(
        experiment_name="benchmark", trial_name="data_parallel", resolver=resolver, bind_hosts=("127.0.0.1",)
    )
    return join(context, epoch=1, rank=rank, world_size=size, device="cpu", timeout_s=_TIMEOUT_S)


def _time_exchanges(ranks: Ranks) -> list[float]:
    """Return one number, to which every exchange from now on adds its seconds."""
    total, add = [0.0], ranks.add

    def timed(tensor: torch.Tensor) -> torch.Tensor:
        started_s = time.perf_counter()
        result = add(tensor)
        total[0] += time.perf_counter() - started_s
        return result

    ranks.add = timed  # type: ignore[method-assign]
    return total


Group = tuple[str, int]
"""Kind of steps, number of processes."""


def measure(sizes: Sequence[int], repeats: int, num_updates: int) -> dict[Group, list[dict[str, float]]]:
    """Return seconds per sample, and the share of exchanges, of every group in every repeat."""
    groups = [(kind, size) for kind in _KINDS for size in sizes]
    found: dict[Group, list[dict[str, float]]] = {group: [] for group in groups}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes: dict[Group, list[Rank]] = {}
        for number, (kind, size) in enumerate(groups):
            directory = root / str(number)
            directory.mkdir()
            processes[kind, size] = [Rank(kind, rank, size, directory) for rank in range(size)]
            for process in processes[kind, size]:
                stack.callback(process.close)
            _turn(processes[kind, size], 2)  # warm up
        for repeat in range(repeats):
            print(f"repeat {repeat + 1} of {repeats} ...", file=sys.stderr)
            for group in groups:
                found[group].append(_turn(processes[group], num_updates))
    return found


def _turn(group: list[Rank], num_updates: int) -> dict[str, float]:
    for rank in group:
        rank.tell(num_updates)
    answers = [rank.heard() for rank in group]
    slowest_s = max(answer["all"] for answer in answers)
    return {
        "us": 1e6 * slowest_s / (len(group) * num_updates * _NUM_STEPS * _NUM_ENVS),
        "exchange": statistics.mean(answer["exchange"] / answer["all"] for answer in answers),
    }


def report(found: dict[Group, list[dict[str, float]]]) -> str:
    """Return the tables."""
    rows, shares = [], []
    for (kind, size), values in found.items():
        alone = [value["us"] for value in found[kind, 1]]
        goal = _GOAL if size == 2 and kind == "by hand" else None
        name = f"{kind}, {size} process{'es' if size > 1 else ''}"
        own = [value["us"] for value in values]
        rows.append(Comparison(name, own, alone, None if goal is None else round(goal, 2)))
        exchange = statistics.median(value["exchange"] for value in values)
        is_known = kind == "by hand" and size > 1
        rate = statistics.median(1e6 / value for value in own)
        shares.append((name, f"{rate:,.0f}", f"{exchange:.0%}" if is_known else "-"))
    return "\n\n".join(
        (
            "Update of four epochs, us per sample",
            comparison_table(rows, "ratio to one process"),
            markdown_table(("what", "samples/s", "exchange"), shares),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer, shorter repeats")
    parser.add_argument("--processes", type=int, default=2, help="compared with one (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each group (default: 7)")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank is not None:
        be_rank(**json.loads(options.rank))
        return 0
    repeats, num_updates = (2, 2) if options.quick else (options.repeats, 25)
    print(report(measure((1, options.processes), repeats, num_updates)))
    print(f"\n{machine_facts()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
