"""`hpc-marl top EXP[/TRIAL]`: watch a run live; goes on when another controller takes over, ends with the run."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.errors import NoControllerError
from hpc_marl.runs.live_client import live_controller
from hpc_marl.trials.reference import find_trial
from hpc_marl.trials.trial_files import read_verdict
from hpc_marl.views.snapshot_view import work_rates
from hpc_marl.views.top_view import render

_INTERVAL_S = 2.0
_TIMEOUT_S = 5.0
# Rates are taken over so many frames: heartbeats come at their own pace.
_RATE_FRAMES = 6
# In a file or a pipe nothing has to fit a screen.
_FILE_WIDTH, _FILE_HEIGHT = 160, 60


@dataclass(frozen=True)
class Frame:
    """What one picture shows.

    Attributes:
        snapshot: the controller's newest word.
        rates: what each kind of worker does per second.
        note: why the snapshot is not of now.
    """

    snapshot: Mapping[str, Any]
    rates: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def picture(self, width: int, height: int) -> RenderableType:
        """Return it as at most `height` lines of at most `width` columns."""
        return render(self.snapshot, rates=self.rates, width=width, height=height, note=self.note)


def main(arguments: Sequence[str]) -> int:
    """Watch a run until it ends or Ctrl-C; without a terminal, print one frame."""
    parser = trial_parser("top", "Watch a run live until it ends. Ctrl-C ends the watching, not the run.")
    options = parser.parse_args(arguments)

    def command() -> int:
        directory = find_trial(options.reference, options.root)
        if sys.stdout.isatty():
            watch(directory, Console(file=sys.stdout))
        else:
            console = Console(file=sys.stdout, width=None if "COLUMNS" in os.environ else _FILE_WIDTH)
            console.print(next(frames(directory)).picture(console.width, _FILE_HEIGHT))
        return 0

    return run_command(command)


def frames(directory: RunDirectory, *, timeout_s: float = _TIMEOUT_S) -> Generator[Frame, None, None]:
    """Ask the controller anew for each frame; end when the run has.

    A controller that has been silent for `timeout_s` seconds, or is gone, leaves the last snapshot on the screen
    until there is another one.

    Raises:
        NoControllerError: none answers at the beginning.
    """
    seen: deque[Mapping[str, Any]] = deque(maxlen=_RATE_FRAMES)
    while True:
        try:
            with live_controller(directory, timeout_s=timeout_s) as controller:
                while True:
                    snapshot = controller.status()
                    yield Frame(snapshot, work_rates(seen[0], snapshot) if seen else {})
                    seen.append(snapshot)
                    if snapshot.get("verdict"):
                        return
        except NoControllerError as error:
            if not seen:
                raise
            if read_verdict(directory) is not None:
                return
            yield Frame(seen[-1], note=str(error))


def watch(directory: RunDirectory, console: Console, *, interval_s: float = _INTERVAL_S) -> None:
    """Redraw the whole screen every `interval_s` seconds; at the end leave the last frame and the verdict.

    Raises:
        NoControllerError: none answers at the beginning.
    """
    coming = frames(directory)
    frame = next(coming)  # before the screen is taken: an error is then seen
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            live.update(frame.picture(*console.size), refresh=True)
            for frame in _paced(coming, interval_s):
                live.update(frame.picture(*console.size), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        coming.close()
    console.print(frame.picture(*console.size))
    if (verdict := read_verdict(directory)) is not None:
        console.print(f"{directory.experiment_name}/{directory.trial_name} has ended {verdict}", markup=False)


def _paced(coming: Iterator[Frame], interval_s: float) -> Iterator[Frame]:
    while True:
        time.sleep(interval_s)
        frame = next(coming, None)
        if frame is None:
            return
        yield frame
