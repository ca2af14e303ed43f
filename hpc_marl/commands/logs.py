"""`hpc-marl logs EXP[/TRIAL] [KIND[/INDEX] ...] [-f]`: the logs of all workers and jobs, merged by time."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import zlib
from collections.abc import Iterable, Sequence

from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.errors import ConfigError
from hpc_marl.trials.reference import find_trial
from hpc_marl.trials.trial_files import read_verdict
from hpc_marl.views.log_files import LogLine, find_log_files, merged, tail_of
from hpc_marl.views.log_follow import LogFollower
from hpc_marl.views.log_traceback import first_traceback, traceback_text
from hpc_marl.views.text_table import listed

_DEFAULT_LINES = 200
_KINDS = ("trainer", "policy", "actor", "evaluator", "host", "job", "controller")
# Of the 256: far from black, white and each other.
_COLOURS = (33, 37, 70, 74, 98, 103, 108, 130, 135, 139, 166, 172, 179, 205, 209, 214)


def main(arguments: Sequence[str]) -> int:
    """Show, and with -f follow, the logs of a run; end with the first traceback in them."""
    parser = trial_parser("logs", "Show the logs of all workers and jobs of a run, merged by time.")
    parser.add_argument(
        "workers", nargs="*", metavar="KIND[/INDEX]", help=f"only these; kinds are {', '.join(_KINDS)}"
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what is added, until the run ends"
    )
    parser.add_argument(
        "-n",
        "--lines",
        type=int,
        default=_DEFAULT_LINES,
        help=f"begin with the last N lines; default: {_DEFAULT_LINES}",
    )
    parser.add_argument("--grep", metavar="REGEX", help="only lines in which this is found")
    parser.add_argument("--paths", action="store_true", help="print the paths of the files instead")
    options = parser.parse_intermixed_args(arguments)
    return run_command(lambda: _logs(options))


def _logs(options: argparse.Namespace) -> int:
    directory = find_trial(options.reference, options.root)
    pattern = _compiled(options.grep)
    files = find_log_files(directory.logs, options.workers)
    if not files:
        _check_selection(directory, options.workers, may_come=options.follow)
    if options.paths:
        sys.stdout.writelines(f"{file.path}\n" for file in files)
        return 0
    printer = _LinePrinter(pattern)
    follower = LogFollower(directory.logs, options.workers)
    tails = [tail_of(file, max(0, options.lines), pattern) for file in files]
    printer.print(merged((tail.lines for tail in tails), max(0, options.lines)))
    for file, tail in zip(files, tails, strict=True):
        follower.begin_after(file, tail)
    if options.follow:
        try:
            _follow(directory, follower, printer)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
    if (traceback := first_traceback(find_log_files(directory.logs, options.workers))) is not None:
        sys.stdout.write("\n" + traceback_text(traceback, directory))
    return 0


def _follow(directory: RunDirectory, follower: LogFollower, printer: _LinePrinter) -> None:
    """Print what is added until the run has ended and nothing more comes."""
    while True:
        # Asked before the poll: what is written before the verdict is then seen for sure.
        has_ended = read_verdict(directory) is not None
        lines = follower.poll()
        printer.print(lines)
        if has_ended and not lines:
            return
        time.sleep(follower.interval_s)


def _check_selection(directory: RunDirectory, selections: Sequence[str], *, may_come: bool) -> None:
    """Refuse a selection that no file fits, unless one may come.

    Raises:
        ConfigError: lists the kinds and some of the workers that there are.
    """
    files = find_log_files(directory.logs)
    known = {*_KINDS, *read_launch_record(directory).worker_kinds, *(file.kind for file in files)}
    if may_come and all(selection.partition("/")[0] in known for selection in selections):
        return
    there = listed(list(dict.fromkeys(file.worker for file in files)), 8) or "none"
    raise ConfigError(
        f"no logs of {', '.join(selections) or 'anybody'} in {directory.logs}; expected KIND or KIND/INDEX with a kind "
        f"of {', '.join(sorted(known))}; there are: {there}"
    )


def _compiled(regex: str | None) -> re.Pattern[str] | None:
    try:
        return None if regex is None else re.compile(regex)
    except re.error as error:
        raise ConfigError(f"--grep {regex!r} is not a regular expression: {error}") from None


class _LinePrinter:
    """Prints log lines after the name of their worker, in a colour of its own on a terminal."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._width = 0
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def print(self, lines: Iterable[LogLine]) -> None:
        """Print those lines that the pattern is found in."""
        shown = [line for line in lines if self._pattern is None or self._pattern.search(line.text)]
        self._width = max([self._width, *(len(line.worker) for line in shown)])
        sys.stdout.writelines(f"{self._prefix(line.worker)} {line.text}\n" for line in shown)
        sys.stdout.flush()

    def _prefix(self, worker: str) -> str:
        text = worker.ljust(self._width)
        if not self._coloured:
            return text
        return f"\x1b[38;5;{_COLOURS[zlib.crc32(worker.encode()) % len(_COLOURS)]}m{text}\x1b[0m"
