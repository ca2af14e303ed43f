"""Contexts of several "processes" of one run, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import create_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.streams import inference_client, links, parameter_reader, sample_talk


@pytest.fixture
def new_context(tmp_path: Path) -> Iterator[Callable[[], RunContext]]:
    """Return a function that opens another context of the same run; all are closed at the end."""
    keyring = create_keyring(tmp_path / "auth")
    opened: list[RunContext] = []

    def open_context() -> RunContext:
        context = RunContext("exp", "trial", FileNameResolver(tmp_path / "names"), SocketFactory(keyring))
        opened.append(context)
        return context

    yield open_context
    for context in opened:
        context.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what is seconds in earnest: how long silence is borne before anybody looks or asks again."""
    for module, name in (
        (links, "_ABSENT_INTERVAL_S"),
        (links, "_LOST_INTERVAL_S"),
        (links, "_SILENT_INTERVAL_S"),
        (sample_talk, "_SILENCE_S"),
        (sample_talk, "_REPAIR_S"),
        (parameter_reader, "_SILENCE_S"),
        (parameter_reader, "_ASK_AGAIN_S"),
        (inference_client, "_LOST_INTERVAL_S"),
        (inference_client, "_BALANCE_INTERVAL_S"),
    ):
        monkeypatch.setattr(module, name, 0.05)


def until(condition: Callable[[], object], *poll: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Call `poll` in turn until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for does not come about"
        for one in poll:
            one()
        time.sleep(0.001)
