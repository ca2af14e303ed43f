"""A host in waiting: becomes what its orders say, and does not outlive the command that gives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hpc_marl.base.early_host import HOST_PROGRAM, MARK_VARIABLE, EarlyHost, Orders

_PATIENCE_S = 60.0


@contextmanager
def started() -> Iterator[EarlyHost]:
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # pytest changes it between a fixture and its test
    early = EarlyHost()
    try:
        yield early
    finally:
        early.dismiss()


def process_of(early: EarlyHost) -> psutil.Process:
    return next(
        child for child in psutil.Process().children() if child.environ().get(MARK_VARIABLE) == early.mark
    )


def nursery_of(host: psutil.Process) -> psutil.Process:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        for child in host.children():
            if child.cmdline()[3:4] == ["nursery"]:
                return child
        assert time.monotonic() < deadline
        time.sleep(0.01)


def command(directory: Path) -> list[str]:
    return [*HOST_PROGRAM, "--run-dir", str(directory), "--slots", "0"]


def test_it_becomes_what_it_is_told(tmp_path: Path) -> None:
    with started() as early:
        host, log = process_of(early), tmp_path / "host.out"
        assert os.getsid(host.pid) == host.pid, "Ctrl-C does not reach it"
        nursery = nursery_of(host)
        process = early.take(command(tmp_path), {**os.environ, MARK_VARIABLE: early.mark}, log)
        assert process is not None and process.pid == host.pid
        early.dismiss()  # it is not the command's any more
        # There is no run in that directory: the host says so, where a host says things.
        assert process.wait(_PATIENCE_S) == 1
        assert f"{tmp_path} holds no run" in log.read_text()
        nursery.wait(_PATIENCE_S)


def test_it_is_no_other_program_and_of_no_other_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started() as early:
        log = tmp_path / "host.out"
        assert early.take(["true"], {}, log) is None
        with monkeypatch.context() as other:
            other.setenv("PYTHONHASHSEED", "7")
            assert early.take(command(tmp_path), {}, log) is None
        with monkeypatch.context() as other:
            other.chdir(tmp_path)
            assert early.take(command(tmp_path), {}, log) is None
        process = early.take(command(tmp_path), dict(os.environ), log)
        assert process is not None
        assert early.take(command(tmp_path), dict(os.environ), log) is None, "it is taken"
        process.wait(_PATIENCE_S)


def test_one_that_has_died_is_not_taken(tmp_path: Path) -> None:
    with started() as early:
        host = process_of(early)
        host.kill()
        while host.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)
        assert early.take(command(tmp_path), dict(os.environ), tmp_path / "host.out") is None


def test_nothing_is_left_when_it_is_not_needed() -> None:
    with started() as early:
        host = process_of(early)
        nursery = nursery_of(host)
        early.dismiss()
        early.dismiss()
        assert not host.is_running()
        nursery.wait(_PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_command(number: int) -> None:
    program = (
        "import time; from hpc_marl.base.early_host import EarlyHost; EarlyHost(); "
        "print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        (host,) = psutil.Process(process.pid).children()
        nursery = nursery_of(host)
        process.send_signal(number)
        _, alive = psutil.wait_procs([host, nursery], timeout=_PATIENCE_S)
        assert alive == []


def test_orders_go_through_a_pipe_whole_or_not_at_all() -> None:
    orders = Orders(["host", "--slots", "0"], {"A": "b\udcffc"}, Path("x.log"))
    assert Orders.decode(orders.encode()) == orders
    assert Orders.decode(orders.encode()[:-3]) is None and Orders.decode(b"") is None
