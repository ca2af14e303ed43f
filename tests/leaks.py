"""What a test may not leave behind: threads, processes, listening ports, shared memory, files in shared places."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

# Every process that a test starts inherits this variable, also those that outlive the one which started them.
SESSION_VARIABLE = "HPC_MARL_TEST_SESSION"
SHARED_DIRECTORIES = (Path("/dev/shm"), Path(tempfile.gettempdir()))
# What has been told to stop gets this long; nothing waits where nothing is left.
GRACE_S = 5.0
# Processes that have been looked at and have nothing to do with this session: each is looked at once.
_OTHERS: set[int] = set()


def traces() -> dict[str, str]:
    """Return what this process and its descendants hold now: a unique key for each thing, and how to call it."""
    found = {
        f"thread {thread.ident}": f"thread {thread.name!r}"
        for thread in threading.enumerate()
        if not thread.daemon and thread.is_alive()
    }
    found |= _processes() | _descriptors()
    for directory in SHARED_DIRECTORIES:
        found |= {str(path): f"file {path}" for path in directory.glob("hpc_marl*")}
    return found


def left_behind(before: dict[str, str], grace_s: float = GRACE_S) -> list[str]:
    """Return what is there now, was not before, and does not go away by itself within the grace time."""
    deadline = time.monotonic() + grace_s
    while True:
        new = [name for key, name in traces().items() if key not in before]
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.02)


def _processes() -> dict[str, str]:
    """Return our descendants, and every process that inherited this session's variable, orphans too."""
    running = set(psutil.pids()) - {os.getpid()}
    _OTHERS.intersection_update(running)
    named = {}
    for pid in running - _OTHERS:
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            process = psutil.Process(pid)
            command = _command_line(process)
            # The standard library keeps its tracker for the life of the interpreter.
            if _is_ours(process) and "multiprocessing.resource_tracker" not in command:
                named[f"process {pid} {process.create_time()}"] = f"process {pid}: {command[:200]}"
            else:
                _OTHERS.add(pid)
    return named


def _is_ours(process: psutil.Process) -> bool:
    if any(parent.pid == os.getpid() for parent in process.parents()):
        return True
    mark = f"{SESSION_VARIABLE}={os.environ.get(SESSION_VARIABLE)}".encode()
    try:
        return mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is another user's, or there is no /proc
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return "ended, but nobody has waited for it"
    except psutil.AccessDenied:
        return "of another user"


def _descriptors() -> dict[str, str]:
    """Return this process's listening TCP ports and anonymous shared memory."""
    found = {}
    for connection in psutil.Process().net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            host, port = connection.laddr
            found[f"port {host}:{port} {connection.fd}"] = f"listening port {host}:{port}"
    descriptors = Path("/proc/self/fd")
    for descriptor in descriptors.iterdir() if descriptors.is_dir() else ():
        with suppress(OSError):  # the descriptor by which the directory itself was read
            target = os.readlink(descriptor)
            if target.startswith("/memfd:"):
                found[f"memfd {os.stat(descriptor).st_ino}"] = f"shared memory {target}"
    return found


@pytest.fixture(scope="session", autouse=True)
def marked_session() -> None:
    """Mark every process that this session's tests will start."""
    os.environ[SESSION_VARIABLE] = uuid.uuid4().hex


@pytest.fixture(autouse=True)
def nothing_left_behind(marked_session: None) -> Iterator[None]:
    """Fail a test that leaves something behind; what wider fixtures hold was there before it."""
    before = traces()
    yield
    left = left_behind(before)
    assert not left, "the test left behind: " + ", ".join(left)
