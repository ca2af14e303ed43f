"""The check that every test goes through sees what a test could leave behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.leaks import left_behind, traces

SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@contextmanager
def thread() -> Iterator[None]:
    """A thread that is not a daemon."""
    stop = threading.Event()
    running = threading.Thread(target=stop.wait)
    running.start()
    yield
    stop.set()
    running.join()


@contextmanager
def child() -> Iterator[None]:
    """A child process."""
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as process:
        yield
        process.communicate()


@contextmanager
def orphan() -> Iterator[None]:
    """A process whose parent has ended and that has a session of its own."""
    reading, writing = os.pipe()
    script = (
        f"import subprocess as s; p = s.Popen({SLEEP!r}, stdin={reading}, stdout=s.DEVNULL, stderr=s.DEVNULL,"
        " start_new_session=True); print(p.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        pass_fds=[reading],
        check=True,
        capture_output=True,
        text=True,
    )
    process = psutil.Process(int(done.stdout))
    os.close(reading)
    yield
    os.close(writing)
    psutil.wait_procs([process])


@contextmanager
def zombie() -> Iterator[None]:
    """A child that has ended and was not waited for."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield


@contextmanager
def port() -> Iterator[None]:
    """A listening TCP socket."""
    with socket.create_server(("127.0.0.1", 0)):
        yield


@contextmanager
def shared_memory() -> Iterator[None]:
    """An anonymous shared memory file."""
    descriptor = os.memfd_create("planted")
    yield
    os.close(descriptor)


@contextmanager
def file_in_shared_place() -> Iterator[None]:
    """A file of ours where other programs' files are."""
    with tempfile.TemporaryDirectory(prefix="hpc_marl-planted-", dir="/dev/shm"):
        yield


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (thread, "thread"),
        (child, "process"),
        (orphan, "process"),
        (zombie, "process"),
        (port, "listening port 127.0.0.1"),
        (shared_memory, "shared memory /memfd:planted"),
        (file_in_shared_place, "file /dev/shm/hpc_marl-planted-"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_what_is_left_behind_is_seen(plant: Callable[[], object], expected: str) -> None:
    before = traces()
    with plant():  # type: ignore[attr-defined]
        left = left_behind(before, grace_s=0.0)
    assert any(text.startswith(expected) for text in left), left
    assert left_behind(before) == []
