"""ChildProcesses: the workers of one slot as processes of this machine.

A worker is known here only as a command line: it comes of a nursery that has imported what it needs, or is started as
a program. Each has a session of its own, so that Ctrl-C in a terminal does not reach it; it ends when its host process
does (`die_with_parent`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_marl.base.early_host import THREAD_VARIABLES
from hpc_marl.workers.nursery import Nurseries, NurseryChild

_GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_KILL_WAIT_S = 5.0


@dataclass
class Child:
    """One worker process, or what became of it.

    Attributes:
        life: how often the worker was started before.
        process: the process; it may have ended.
        gpus: indices into the visible GPUs and the share of each that it may use.
        started_s: by the monotonic clock.
    """

    life: int
    process: subprocess.Popen[bytes] | NurseryChild
    gpus: dict[int, float]
    started_s: float

    @property
    def exit_code(self) -> int | None:
        """None while it runs; killed by signal N is -N."""
        return self.process.poll()


@dataclass(frozen=True)
class Inheritance:
    """What the workers of a host get of it.

    Attributes:
        nurseries: where they can come of; None: all are started as programs.
        environment: variables for all of them.
        descriptors: open ones that the environment speaks of.
    """

    nurseries: Nurseries | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


class ChildProcesses:
    """Starts, watches and ends worker processes.

    Args:
        run_directory: the trial's directory, handed to every worker.
        gpus: the GPUs that may be handed out, as CUDA_VISIBLE_DEVICES names them; None: the workers see what we see.
        inheritance: what they get of this process.

    Attributes:
        children: the newest process of every worker that was launched here.
    """

    def __init__(
        self,
        run_directory: Path,
        gpus: list[str] | None = None,
        inheritance: Inheritance | None = None,
    ) -> None:
        self._run_directory, self._gpus = run_directory, gpus
        self._inheritance = inheritance or Inheritance()
        self.children: dict[str, Child] = {}

    def launch(self, worker_name: str, life: int, num_threads: int, gpus: float = 0.0) -> None:
        """Start a worker in place of an earlier life of it; its output goes to logs/KIND/INDEX.LIFE.log."""
        self.kill(worker_name)
        self.children.pop(worker_name, None)
        kind, index = worker_name.split("/")
        log_file = self._run_directory / "logs" / kind / f"{index}.{life}.log"
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = [worker_name, "--run-dir", str(self._run_directory), "--life", str(life)]
        share = self._take_gpus(gpus)
        environment = {
            **self._inheritance.environment,
            **dict.fromkeys(THREAD_VARIABLES, str(num_threads)),
            "PYTHONUNBUFFERED": "1",
        }
        if kind == "trainer":  # divides its work among threads itself, each of which calls BLAS
            environment["OPENBLAS_NUM_THREADS"] = "1"
        if self._gpus is not None:
            environment[_GPU_VARIABLE] = ",".join(self._gpus[index] for index in share)
        nurseries = self._inheritance.nurseries
        nursery = nurseries.of(kind, num_threads) if nurseries else None
        process: subprocess.Popen[bytes] | NurseryChild
        if nursery is not None:
            process = nursery.launch(arguments, environment, log_file)
        else:
            process = _start(arguments, environment, log_file, self._inheritance.descriptors)
        self.children[worker_name] = Child(life, process, share, time.monotonic())

    def running(self) -> list[str]:
        """Return the workers whose process is there."""
        return [name for name, child in self.children.items() if child.exit_code is None]

    def kill(self, worker_name: str) -> None:
        """Make sure that the worker's process is gone."""
        child = self.children.get(worker_name)
        if child is not None and child.exit_code is None:
            child.process.kill()
            child.process.wait(_KILL_WAIT_S)

    def terminate(self, worker_names: Iterable[str]) -> None:
        """Ask processes to save and end; returns at once."""
        for name in worker_names:
            child = self.children[name]
            if child.exit_code is None:
                child.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> list[str]:
        """Wait until all processes have ended; return the workers whose process has not after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (running := self.running()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return running

    def close(self) -> None:
        """Kill whatever is still there."""
        for name in self.running():
            self.kill(name)

    def _take_gpus(self, wanted: float) -> dict[int, float]:
        """Choose GPUs: whole ones that nobody uses, or for a fraction the fullest one with room for it.

        Where there are not enough, the emptiest are shared: slow is better than a run that does not start.
        """
        if self._gpus is None or wanted <= 0:
            return {}
        used = [0.0] * len(self._gpus)
        for name in self.running():
            for index, share in self.children[name].gpus.items():
                used[index] += share
        if wanted < 1:
            fitting = [i for i, share in enumerate(used) if share + wanted <= 1.0 + 1e-9]
            order = sorted(fitting, key=lambda i: -used[i]) or sorted(range(len(used)), key=lambda i: used[i])
            return dict.fromkeys(order[:1], wanted)
        emptiest = sorted(range(len(used)), key=lambda i: used[i])
        return dict.fromkeys(emptiest[: round(wanted)], 1.0)


def _start(
    arguments: list[str], environment: dict[str, str], log_file: Path, descriptors: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    with open(log_file, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hpc_marl.workers", *arguments, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=descriptors,
            start_new_session=True,
        )


def visible_gpus() -> list[str] | None:
    """Return the GPUs that this process was given, None where nobody has said so."""
    given = os.environ.get(_GPU_VARIABLE)
    if given is None:
        return None
    return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "NoDevFiles"]
