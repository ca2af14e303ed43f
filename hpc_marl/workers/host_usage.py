"""HostUsage: CPU, memory and GPU use of a host's workers, for heartbeats and for the report after the run."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import Any

import psutil

from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.workers.child_processes import ChildProcesses, visible_gpus
from hpc_marl.workers.slurm_task import SlurmTask

_log = logging.getLogger(__name__)

_SAMPLE_INTERVAL_S = 2.0
_GPU_INTERVAL_S = 10.0
_NEWBORN_S = 0.2  # what has not begun to be a worker has no figures
_MB = 2**20


class HostUsage:
    """Measures the process tree of every worker now and then.

    Args:
        directory: of the trial; usage/host-SLOT.INCARNATION.json is written there.
        run_uuid: of the launch.
        slot: the host's.
        role: of its job.
        incarnation: of the host.
        task: what Slurm gave.
        processes: the workers.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        run_uuid: str,
        slot: int,
        role: str,
        incarnation: str,
        task: SlurmTask,
        processes: ChildProcesses,
    ) -> None:
        self._path = directory.usage / f"host-{slot}.{incarnation}.json"
        self._run_uuid = run_uuid
        self._slot, self._role, self._task, self._processes = slot, role, task, processes
        self._started, self._started_s = time.time(), time.monotonic()
        self._gpus = _GpuMeter()
        self._next_sample_s = 0.0
        self._cpu_s: dict[str, dict[int, float]] = {}  # worker -> pid -> CPU seconds so far
        self._rss_mb: dict[str, float] = {}
        self._max_rss_mb: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._percent: dict[str, float] = {}
        self._last_total: dict[str, tuple[float, float]] = {}
        self._max_total_mb = 0.0

    def metrics(self) -> dict[str, float | int | str]:
        """Return the newest figures of the host and, as `rss/actor/3` and `cpu/actor/3`, of each worker."""
        self._sample()
        figures: dict[str, float | int | str] = {
            "cpu_percent": round(sum(self._percent.values()), 1),
            "rss_mb": round(sum(self._rss_mb.values()), 1),
        }
        if self._gpus.percent is not None:
            figures["gpu_percent"] = round(self._gpus.percent, 1)
        for name in self._rss_mb:
            figures[f"rss/{name}"] = round(self._rss_mb[name], 1)
            figures[f"cpu/{name}"] = round(self._percent.get(name, 0.0), 1)
        return figures

    def write(self, ended: str = "") -> None:
        """Replace the usage file; a disk that refuses costs only the figures."""
        content = {
            "run_uuid": self._run_uuid,
            "slot": self._slot,
            "role": self._role,
            "node": self._task.node,
            "job_id": self._task.job_id,
            "restarts": self._task.restarts,
            "started": round(self._started, 3),
            "seconds": round(time.monotonic() - self._started_s, 1),
            "cpus": self._task.cpus,
            "gpus": len(visible_gpus() or []),
            "cpu_s": round(sum(sum(parts.values()) for parts in self._cpu_s.values()), 2),
            "max_rss_mb": round(self._max_total_mb, 1),
            "gpu_percent_mean": self._gpus.mean,
            "ended": ended,
            "workers": {name: self._worker(name) for name in self._cpu_s},
        }
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            atomic_write(self._path, json.dumps(content, indent=1).encode())
        except OSError as error:
            _log.warning("usage was not written: %s", error)

    def _worker(self, name: str) -> dict[str, Any]:
        return {
            "cpu_s": round(sum(self._cpu_s[name].values()), 2),
            "max_rss_mb": round(self._max_rss_mb.get(name, 0.0), 1),
            "seconds": round(self._seconds.get(name, 0.0), 1),
        }

    def _sample(self) -> None:
        now = time.monotonic()
        if now < self._next_sample_s:
            return
        self._next_sample_s = now + _SAMPLE_INTERVAL_S
        self._gpus.sample(now)
        self._rss_mb = {}
        trees = _Processes()
        for name in self._processes.running():
            child = self._processes.children[name]
            if child.process.pid is None or now - child.started_s < _NEWBORN_S:
                continue
            self._rss_mb[name] = self._measure(name, trees.below(child.process.pid)) / _MB
            self._max_rss_mb[name] = max(self._max_rss_mb.get(name, 0.0), self._rss_mb[name])
            total = sum(self._cpu_s[name].values())
            before_s, before = self._last_total.get(name, (child.started_s, 0.0))
            self._percent[name] = 100.0 * max(total - before, 0.0) / max(now - before_s, 1e-3)
            self._seconds[name] = self._seconds.get(name, 0.0) + now - before_s
            self._last_total[name] = (now, total)
        self._percent = {name: value for name, value in self._percent.items() if name in self._rss_mb}
        self._max_total_mb = max(self._max_total_mb, sum(self._rss_mb.values()))

    def _measure(self, name: str, tree: Iterable[psutil.Process]) -> float:
        """Take in the CPU time of a worker's process tree; return its resident bytes."""
        rss = 0
        seconds = self._cpu_s.setdefault(name, {})
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                rss += process.memory_info().rss
        return float(rss)


class _Processes:
    """Who is whose child on this machine: asked once for all workers, of which there may be many."""

    def __init__(self) -> None:
        self._by_pid: dict[int, psutil.Process] = {}
        self._children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._children.setdefault(process.ppid(), []).append(process)
                self._by_pid[process.pid] = process

    def below(self, pid: int) -> list[psutil.Process]:
        """Return a process and all that descend from it; none where it has ended."""
        tree = [self._by_pid[pid]] if pid in self._by_pid else []
        for process in tree:  # grows as it is gone through
            tree += self._children.get(process.pid, ())
        return tree


class _GpuMeter:
    """Mean utilisation of the visible GPUs by nvidia-smi, where there is one; it runs beside us, never waited for."""

    def __init__(self) -> None:
        self.percent: float | None = None
        self._program = shutil.which("nvidia-smi") if visible_gpus() != [] else None
        self._query: subprocess.Popen[str] | None = None
        self._next_s = 0.0
        self._sum, self._count = 0.0, 0

    @property
    def mean(self) -> float | None:
        """Over all samples; None while there is none."""
        return round(self._sum / self._count, 1) if self._count else None

    def sample(self, now: float) -> None:
        """Take in an answer that is there; ask again if it is time to."""
        if self._query is not None and self._query.poll() is not None:
            self._take(self._query)
            self._query = None
        if self._program and self._query is None and now >= self._next_s:
            self._next_s = now + _GPU_INTERVAL_S
            which = [f"--id={','.join(gpus)}"] if (gpus := visible_gpus()) else []
            command = [self._program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", *which]
            self._query = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def _take(self, query: subprocess.Popen[str]) -> None:
        output, _ = query.communicate()
        values = [float(word) for word in output.split() if word.replace(".", "", 1).isdigit()]
        if query.returncode == 0 and values:
            self.percent = sum(values) / len(values)
            self._sum += self.percent
            self._count += 1
