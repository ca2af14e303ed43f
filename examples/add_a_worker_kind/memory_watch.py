"""A worker kind of your own: one that keeps an eye on the memory of its machine.

`conf/experiment/memory_watch.yaml` beside this file makes it a worker of a run, as `memory/0`, by naming the class in
one `worker_class` line. From the clone's root, train with

    PYTHONPATH=examples/add_a_worker_kind \\
        hpc-marl train --config-dir examples/add_a_worker_kind/conf experiment=memory_watch total_env_steps=50_000

and watch it in one process, without a run, with `python examples/add_a_worker_kind/memory_watch.py`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import psutil

from hpc_marl.base import name_resolve
from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_control import ZmqServer, ZmqWorkerControl


class MemoryWatch(Worker):
    """Samples the machine's memory in use; heartbeats carry the newest value and the peak."""

    def __init__(
        self,
        server: WorkerServer,
        context: RunContext | None = None,
        run_directory: RunDirectory | None = None,
        *,
        orphan_grace_s: float | None = None,
    ) -> None:
        """Take what every kind of worker takes; a command of one's own is one more line."""
        super().__init__(server, orphan_grace_s=orphan_grace_s)
        self.used_bytes = self.peak_bytes = 0
        self.next_sample = 0.0
        server.register_handler("forget_peak", self.forget_peak)

    def forget_peak(self) -> int:
        """Begin a new peak; return the old one. The controller calls this as `request(name, "forget_peak")`."""
        old, self.peak_bytes = self.peak_bytes, 0
        return old

    def _configure(self, config: dict[str, Any]) -> None:
        self.interval_s = float(config["interval_s"])

    def _reconfigure(self, *, interval_s: float) -> None:
        self.interval_s = interval_s

    def _poll(self) -> PollResult:
        if time.monotonic() < self.next_sample:
            return PollResult(idle=True)  # so that the loop waits for commands instead of spinning
        self.next_sample = time.monotonic() + self.interval_s
        self.used_bytes = psutil.virtual_memory().used
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return PollResult(num_samples=1)

    def _metrics(self) -> dict[str, float | int | str]:
        return {"used_bytes": self.used_bytes, "peak_bytes": self.peak_bytes}


def main() -> None:
    """Run the worker in a thread and drive it as a controller does."""
    name_resolve.configure(MemoryNameResolver())
    with ZmqServer("example", "in_process", "memory/0") as server:
        thread = threading.Thread(target=MemoryWatch(server).run)
        thread.start()
        with ZmqWorkerControl("example", "in_process") as panel:
            panel.auto_connect()
            panel.request("memory/0", "configure", config={"interval_s": 0.01})
            panel.request("memory/0", "start")
            while not (status := panel.request("memory/0", "status"))["metrics"].get("peak_bytes"):
                time.sleep(0.01)
            print(f"{status['status']}: {status['metrics']['peak_bytes'] / 2**20:.0f} MiB")
            panel.request("memory/0", "reconfigure", interval_s=0.1)
            print(f"forgotten: {panel.request('memory/0', 'forget_peak') / 2**20:.0f} MiB")
            print(panel.request("memory/0", "exit"))
        thread.join()
    name_resolve.configure(None)


if __name__ == "__main__":
    main()
