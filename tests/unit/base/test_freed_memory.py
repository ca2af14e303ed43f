"""A process that keeps what it frees need not ask the system for it again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, sys
import numpy as np
from hpc_marl.base.freed_memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults_of_the_second_array(what: str) -> int:
    """Return page faults of an array of 64 MB that takes the place of another."""
    command = [sys.executable, "-c", _COUNT_FAULTS, what]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_next_array_takes_the_place_of_the_last():
    assert _faults_of_the_second_array("keep") < 10
    assert _faults_of_the_second_array("give back") >= 32  # huge pages of 2 MB, or small ones
