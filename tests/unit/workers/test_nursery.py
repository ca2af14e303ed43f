"""A nursery: what comes of it is as fresh as a program, and nothing survives its host."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc_marl.workers.nursery import Nurseries, Nursery

PROGRAM = Path(__file__).parent / "nursery_host.py"
_PATIENCE_S = 60.0


class Host:
    """The stand-in, driven from here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(directory), "room for longer command lines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, command: str) -> dict[str, Any]:
        """Have one command done; return what is said of it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def word_of(self, name: str) -> dict[str, Any]:
        """Return what a worker says of itself."""
        log = self.directory / f"{name.replace('/', '-')}.log"
        text = eventually(lambda: log.read_text() if log.exists() else "", lambda text: text.endswith("\n"))
        found: dict[str, Any] = json.loads(text)
        return found

    def launch(self, name: str) -> dict[str, Any]:
        """Launch a worker; return what it says."""
        assert self.do(f"launch {name}")["alive"]
        return self.word_of(name)


def eventually(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.process.kill()
    host.process.communicate()


def test_a_worker_is_as_fresh_as_a_program(host: Host) -> None:
    first, second = host.launch("sleeper/1"), host.launch("sleeper/2")
    assert first["has_numpy"], "imported once for all"
    for word in (first, second):
        assert word["session"] == word["pid"] and word["terminates"]
        assert word["COLOUR"] == "blue"
        assert word["given"][-2:] == ["--parent", str(word["parent"])]
        assert word["arguments"] == word["given"]
        assert len(word["descriptors"]) <= 4, "standard ones, and the one that lists them"
    assert first["key"] != second["key"]
    assert not set(first["random"]) & set(second["random"])
    assert psutil.Process(first["parent"]).ppid() == host.process.pid
    assert psutil.Process(first["pid"]).num_threads() == 1


def test_a_worker_is_found_by_its_command_line(host: Host) -> None:
    word = host.launch("sleeper/123456")
    shown = psutil.Process(word["pid"]).cmdline()
    before = psutil.Process(host.process.pid).cmdline()
    assert shown[3:5] == ["sleeper/123456", "--run-dir"] and shown[0] == before[0]
    nursery = psutil.Process(word["parent"]).cmdline()
    assert nursery[:5] == [*before[:3], "nursery", "x"] and not "".join(nursery[5:]).strip()


def test_a_nursery_that_was_there_before_its_run_learns_of_it(host: Host) -> None:
    before = host.launch("sleeper/1")
    host.do("settle round")
    word = host.launch("sleeper/2")
    assert (before["SHAPE"], before["COLOUR"]) == (None, "blue")
    assert (word["SHAPE"], word["COLOUR"]) == ("round", "blue")
    assert (host.directory / "nursery-0.log").exists(), "gets what the nursery says"
    nursery = psutil.Process(word["parent"])
    assert nursery.cmdline()[3:5] == ["nursery", "--run-dir"]


def test_exit_codes_and_signals_are_told(host: Host) -> None:
    assert host.launch("quits/7") and host.do("wait quits/7")["code"] == 7
    host.launch("sleeper/1")
    host.launch("sleeper/2")
    host.do("term sleeper/1")
    host.do("kill sleeper/2")
    assert host.do("wait sleeper/1")["code"] == -signal.SIGTERM
    assert host.do("wait sleeper/2")["code"] == -signal.SIGKILL
    assert host.do("kill sleeper/2")["nursery"], "a signal to one that has ended goes nowhere"


def test_nothing_survives_the_host(host: Host) -> None:
    processes = [psutil.Process(host.launch(name)["pid"]) for name in ("sleeper/1", "sleeper/2")]
    processes.append(processes[0].parent())
    host.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=_PATIENCE_S)
    assert alive == []


def test_when_the_nursery_dies_its_workers_count_as_killed(host: Host) -> None:
    word = host.launch("sleeper/1")
    worker = psutil.Process(word["pid"])
    host.do(f"bury {word['parent']}")
    assert host.do("wait sleeper/1")["code"] == -signal.SIGKILL
    worker.wait(_PATIENCE_S)
    assert not host.do("launch sleeper/2")["nursery"]


def test_who_comes_of_which_nursery() -> None:
    light, heavy = (Nursery.__new__(Nursery) for _ in range(2))
    light.alive = heavy.alive = True
    both, one = Nurseries(light, heavy), Nurseries(light)
    assert both.of("actor", 1) is both.of("memory", 1) is one.of("actor", 1) is light
    assert both.of("trainer", 4) is both.of("policy", 1) is heavy
    assert one.of("trainer", 1) is None, "torch would have to be imported first anyway"
    assert both.of("actor", 2) is both.of("policy", 2) is None, "numeric libraries count threads when loaded"
    light.alive = False
    assert both.of("actor", 1) is None
