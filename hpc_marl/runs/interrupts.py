"""Signals and questions that end a session: what Ctrl-C, a lost SSH connection and `kill` mean."""

from __future__ import annotations

import select
import signal
import sys
import time
from enum import Enum
from types import FrameType
from typing import Any

_ANSWER_TIMEOUT_S = 20.0
_LOOK_INTERVAL_S = 0.1


class Ending(str, Enum):
    """What a person, or a signal, wants of a run."""

    GO_ON = "go on"
    DETACH = "detach"
    """Leave it: the run goes on without this session."""
    STOP = "stop"
    """End it in order; the trainer writes a checkpoint."""
    CANCEL = "cancel"
    """End its jobs at once."""


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP while a run is driven, instead of dying of them.

    Attributes:
        name: of the first signal that was not taken yet; "" while there is none.
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def take(self) -> str:
        """Return the signal's name, once."""
        name, self.name = self.name, ""
        return name

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name


def ending_of(signal_name: str, on_interrupt: str, *, can_detach: bool) -> Ending:
    """Return what a signal asks for; None of it is asked of a person here.

    Args:
        signal_name: SIGINT, SIGTERM or SIGHUP.
        on_interrupt: `cluster.on_interrupt`: ask, detach, stop or cancel.
        can_detach: the run can go on without this process.
    """
    if not can_detach:
        return Ending.STOP
    if signal_name == "SIGINT" and on_interrupt != "ask":
        return Ending(on_interrupt)
    return Ending.DETACH


def is_answerable() -> bool:
    """Whether a person can be asked: standard input and output are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def ask_ending(signals: StopSignals) -> Ending:
    """Ask on the terminal what Ctrl-C means; no answer for a while, or a further signal, means detach."""
    sys.stdout.write(
        "\n[d]etach: the run goes on, come back with `hpc-marl attach`   [s]top: checkpoint, then end"
        "\n[c]ancel: end all jobs now   [Enter]: go on here"
        f"\nYour choice (detach in {_ANSWER_TIMEOUT_S:.0f} s): "
    )
    sys.stdout.flush()
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    # Python resumes an interrupted wait by itself.
    while not select.select([sys.stdin], [], [], _LOOK_INTERVAL_S)[0]:
        if signals.take() or time.monotonic() > deadline:
            sys.stdout.write("detach\n")
            return Ending.DETACH
    answer = sys.stdin.readline()
    choices = {"d": Ending.DETACH, "s": Ending.STOP, "c": Ending.CANCEL, "\n": Ending.GO_ON}
    # The end of the input is a terminal that was closed.
    return choices.get(answer[:1].lower(), Ending.GO_ON if answer else Ending.DETACH)
