"""What a run shows while it trains: a live panel on a terminal, else a plain line every few seconds.

make_display(...) -> event(text), update(progress) a few times a second -> close()
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_REFRESH_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 5.0
_EVENT_LINES = 4

_STATUS_STYLES = {
    "running": "green",
    "completed": "green",
    "ready": "cyan",
    "unknown": "cyan",
    "paused": "yellow",
    "interrupted": "yellow",
    "error": "bold red",
    "lost": "bold red",
}


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        env_steps: environment steps learned from.
        env_steps_per_s: their recent rate.
        agent_steps_per_s: the recent rate of agent steps.
        return_mean: mean return of recent episodes; None while none has ended.
        policy_lag: mean versions between the policy that acted and the trainer's.
        policy_version: updates so far.
        workers: worker name -> status, such as `actor/3` -> `RUNNING`.
        restarts: workers replaced so far.
        elapsed_s: time since the start of this command.
        eta_s: time left; None while the rate is not known.
        waiting: why jobs have not started yet, by role; none where all have.
    """

    env_steps: int
    env_steps_per_s: float
    agent_steps_per_s: float
    return_mean: float | None
    policy_lag: float
    policy_version: int
    workers: Mapping[str, str]
    restarts: int
    elapsed_s: float
    eta_s: float | None
    waiting: Mapping[str, str] = field(default_factory=dict)


class Display(ABC):
    """Shows progress and events; cheap to call often."""

    @abstractmethod
    def update(self, progress: Progress) -> None:
        """Show where the run stands; most calls only remember it."""

    @abstractmethod
    def event(self, text: str) -> None:
        """Show that something happened, in one line."""

    def suspend(self) -> None:  # noqa: B027 - lines need nothing of the kind
        """Give the terminal back for a question."""

    def resume(self) -> None:  # noqa: B027 - lines need nothing of the kind
        """Take the terminal again after `suspend`."""

    @abstractmethod
    def close(self) -> None:
        """Show the last state and give the terminal back; may be called twice."""


def make_display(
    total_env_steps: int, stream: TextIO, *, title: str = "", clock: Callable[[], float] = time.monotonic
) -> Display:
    """Return the display that fits the stream: live where it is a terminal that can move its cursor.

    Args:
        total_env_steps: where the progress bar ends.
        stream: standard output.
        title: the run's name, shown above the live panel.
        clock: monotonic seconds.
    """
    if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return LiveDisplay(total_env_steps, stream, title=title, clock=clock)
    return PlainDisplay(total_env_steps, stream, clock=clock)


class PlainDisplay(Display):
    """One line every few seconds, for log files and pipes."""

    def __init__(
        self,
        total_env_steps: int,
        stream: TextIO,
        *,
        interval_s: float = _LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._stream, self._interval_s, self._clock = total_env_steps, stream, interval_s, clock
        self._shown_s: float | None = None
        self._last: Progress | None = None
        self._pending: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Print a line if the last one is old enough."""
        self._last = self._pending = progress
        if self._shown_s is None or self._clock() - self._shown_s >= self._interval_s:
            self._print_progress()

    def event(self, text: str) -> None:
        """Print the event at once, with the time since the start."""
        elapsed_s = self._last.elapsed_s if self._last else 0.0
        self._stream.write(f"[{clock_text(elapsed_s)}] {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Print the last state, unless it was."""
        if self._pending is not None:
            self._print_progress()

    def _print_progress(self) -> None:
        assert self._pending is not None
        self._stream.write(progress_line(self._pending, self._total) + "\n")
        self._stream.flush()
        self._shown_s, self._pending = self._clock(), None


class LiveDisplay(Display):
    """A panel that redraws itself in place, and stays on the screen when it is closed."""

    def __init__(
        self,
        total_env_steps: int,
        stream: TextIO,
        *,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._total, self._title, self._clock = total_env_steps, title, clock
        self._events: deque[tuple[float, str]] = deque(maxlen=_EVENT_LINES)
        self._progress: Progress | None = None
        self._drawn_s = -_REFRESH_INTERVAL_S
        # Without a thread of its own: the caller's loop draws, so nothing is drawn after close().
        self._live = Live(
            console=console or Console(file=stream),
            auto_refresh=False,
            get_renderable=self._render,
            vertical_overflow="visible",
        )
        self._live.start()

    def update(self, progress: Progress) -> None:
        """Redraw, at most a few times a second."""
        self._progress = progress
        self._draw()

    def event(self, text: str) -> None:
        """Add a line below the panel; the oldest one goes."""
        self._events.append((self._progress.elapsed_s if self._progress else 0.0, text))
        self._draw()

    def suspend(self) -> None:
        """Leave the panel as it is; the cursor is below it."""
        self._live.stop()

    def resume(self) -> None:
        """Draw a new panel below."""
        self._live.start()

    def close(self) -> None:
        """Draw the last state and leave it."""
        if self._live.is_started:
            self._live.stop()

    def _draw(self) -> None:
        now = self._clock()
        if now - self._drawn_s >= _REFRESH_INTERVAL_S:
            self._drawn_s = now
            self._live.refresh()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows: list[RenderableType] = [Text(self._title, style="bold")] if self._title else []
        if self._progress is None:
            rows.append(Text("starting workers ...", style="dim"))
        else:
            rows += [_bar(self._progress, self._total), _figures(self._progress), _workers(self._progress)]
        rows += [
            Text(f"{clock_text(at_s)}  {text}", style="dim", no_wrap=True, overflow="ellipsis")
            for at_s, text in self._events
        ]
        return Group(*rows)


def progress_line(progress: Progress, total_env_steps: int) -> str:
    """Return one plain line that says where a run stands."""
    parts = [
        f"[{clock_text(progress.elapsed_s)}] {_fraction(progress, total_env_steps):4.0%}",
        f"{progress.env_steps:,}/{total_env_steps:,} env_steps",
        f"return {_return_text(progress)}",
        f"{progress.env_steps_per_s:,.0f} env_steps/s",
        f"{progress.agent_steps_per_s:,.0f} agent_steps/s",
        f"policy_lag {progress.policy_lag:.1f}",
        f"{progress.policy_version:,} updates",
        f"ETA {_eta_text(progress)}",
        *worker_states(progress.workers),
    ]
    parts += [f"{role}: {reasons}" for role, reasons in progress.waiting.items()]
    if progress.restarts:
        parts.append(f"{progress.restarts} restarts")
    return "  ".join(parts)


def worker_states(workers: Mapping[str, str]) -> list[str]:
    """Return one short text per kind of worker: `actor 2/2 running`, `actor 3/4 running, 1 lost`."""
    texts = []
    for kind, statuses in _by_kind(workers).items():
        (first, count), *others = statuses
        text = f"{kind} {count}/{sum(number for _, number in statuses)} {first}"
        texts.append(", ".join([text, *(f"{number} {status}" for status, number in others)]))
    return texts


def clock_text(seconds: float) -> str:
    """Return a duration as minutes and seconds, and hours where there are any.

    >>> clock_text(75), clock_text(3675)
    ('01:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def number_text(value: float) -> str:
    """Return a return as people compare it: three decimals where it is small, one where it is large.

    >>> number_text(0.98765), number_text(475.25)
    ('0.988', '475.2')
    """
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def _by_kind(workers: Mapping[str, str]) -> dict[str, list[tuple[str, int]]]:
    """Return (status, number of workers) for every kind: those that run first, then the most frequent."""
    kinds: dict[str, Counter[str]] = {}
    for name, status in workers.items():
        kinds.setdefault(name.split("/")[0], Counter())[status.lower()] += 1
    return {
        kind: sorted(counts.items(), key=lambda item: (item[0] != "running", -item[1]))
        for kind, counts in kinds.items()
    }


def _fraction(progress: Progress, total_env_steps: int) -> float:
    return min(progress.env_steps / total_env_steps, 1.0)


def _return_text(progress: Progress) -> str:
    return "-" if progress.return_mean is None else number_text(progress.return_mean)


def _eta_text(progress: Progress) -> str:
    return "-" if progress.eta_s is None else clock_text(progress.eta_s)


def _bar(progress: Progress, total_env_steps: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, 1, None, None):
        row.add_column(ratio=ratio, no_wrap=True)
    row.add_row(
        f"[bold]{_fraction(progress, total_env_steps):4.0%}[/]",
        ProgressBar(
            total=1.0,
            completed=_fraction(progress, total_env_steps),
            complete_style="cyan",
            finished_style="green",
        ),
        f"{progress.env_steps:,}[dim]/{total_env_steps:,} env_steps[/]",
        f"[dim]{clock_text(progress.elapsed_s)}  ETA[/] {_eta_text(progress)}",
    )
    return row


def _figures(progress: Progress) -> RenderableType:
    from rich.text import Text

    figures = {
        "return": (_return_text(progress), "bold green"),
        "env_steps/s": (f"{progress.env_steps_per_s:,.0f}", "cyan"),
        "agent_steps/s": (f"{progress.agent_steps_per_s:,.0f}", "cyan"),
        "policy_lag": (f"{progress.policy_lag:.1f}", "cyan"),
        "updates": (f"{progress.policy_version:,}", "cyan"),
    }
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, (value, style) in figures.items():
        text.append(f"{name} ", "dim").append(value, style).append("   ")
    return text


def _workers(progress: Progress) -> RenderableType:
    from rich.text import Text

    text = Text(overflow="fold")
    for kind, statuses in _by_kind(progress.workers).items():
        text.append(f"{kind} ", "dim")
        total = sum(number for _, number in statuses)
        for position, (status, number) in enumerate(statuses):
            count = f"{number}/{total}" if position == 0 else f", {number}"
            text.append(f"{count} {status}", _STATUS_STYLES.get(status, ""))
        text.append("   ")
    for role, reasons in progress.waiting.items():
        text.append(f"{role}: {reasons}   ", "yellow")
    restarts_style = "yellow" if progress.restarts else "dim"
    return text.append(f"restarts {progress.restarts}", restarts_style)
