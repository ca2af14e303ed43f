"""What a host knows of its workers' processes."""

from __future__ import annotations

import os
import subprocess
import sys

from hpc_marl.workers.host_usage import _Processes

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_worker_counts_with_all_that_descend_from_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        processes = _Processes()
        assert [process.pid for process in processes.below(parent.pid)] == [parent.pid, grandchild]
        assert {parent.pid, grandchild} < {process.pid for process in processes.below(os.getpid())}
        parent.communicate("\n")
    assert _Processes().below(parent.pid) == []
