"""Ctrl-C, a lost connection and `kill`, and the question that Ctrl-C asks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from hpc_marl.runs import interrupts
from hpc_marl.runs.interrupts import Ending, StopSignals, ask_ending, ending_of, is_answerable


def test_signals_are_noted_instead_of_killing_and_the_first_counts() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals() as signals:
        assert signals.take() == ""
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.name == "SIGHUP" and signals.take() == "SIGHUP"
        assert signals.take() == "", "taken once"
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.take() == "SIGTERM"
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("name", "on_interrupt", "can_detach", "ending"),
    [
        ("SIGINT", "ask", False, Ending.STOP),
        ("SIGTERM", "detach", False, Ending.STOP),
        ("SIGINT", "ask", True, Ending.DETACH),
        ("SIGINT", "detach", True, Ending.DETACH),
        ("SIGINT", "stop", True, Ending.STOP),
        ("SIGINT", "cancel", True, Ending.CANCEL),
        ("SIGHUP", "cancel", True, Ending.DETACH),
        ("SIGTERM", "stop", True, Ending.DETACH),
    ],
)
def test_what_a_signal_means(name: str, on_interrupt: str, can_detach: bool, ending: Ending) -> None:
    assert ending_of(name, on_interrupt, can_detach=can_detach) is ending


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """Type on standard input; None closes it."""
    reader, writer = os.pipe()
    stdin, keyboard = os.fdopen(reader), os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stdin", stdin)

    def type_(text: str | None) -> None:
        keyboard.close() if text is None else keyboard.write(text)

    yield type_
    stdin.close()
    keyboard.close()


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        ("d\n", Ending.DETACH),
        ("Stop\n", Ending.STOP),
        ("c\n", Ending.CANCEL),
        ("\n", Ending.GO_ON),
        ("what?\n", Ending.GO_ON),
        (None, Ending.DETACH),
    ],
)
def test_answers(typed: Callable[[str | None], None], answer: str | None, ending: Ending) -> None:
    typed(answer)
    assert ask_ending(StopSignals()) is ending


def test_no_answer_means_detach(
    typed: Callable[[str | None], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(interrupts, "_ANSWER_TIMEOUT_S", 0.01)
    assert ask_ending(StopSignals()) is Ending.DETACH
    assert "[s]top: checkpoint" in capsys.readouterr().out


def test_a_signal_instead_of_an_answer_means_detach(typed: Callable[[str | None], None]) -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert ask_ending(signals) is Ending.DETACH


def test_nobody_is_asked_where_there_is_no_terminal(
    typed: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_answerable()
    monkeypatch.setattr(sys, "stdin", None)
    assert not is_answerable()
