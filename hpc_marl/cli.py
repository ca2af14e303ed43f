"""`hpc-marl`: the command line. A subcommand is one entry of `SUBCOMMANDS`, imported when it is called."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_marl import __version__
from hpc_marl.exit_codes import EXIT_USAGE


@dataclass(frozen=True)
class Subcommand:
    """One word after `hpc-marl`.

    Attributes:
        target: `module:function`; the function takes the remaining arguments and returns the exit code.
        usage: the arguments, as the help shows them.
        summary: what it does, in a few words.
    """

    target: str
    usage: str
    summary: str

    def __call__(self, arguments: Sequence[str]) -> int:
        """Import the target and run it."""
        run: Callable[[Sequence[str]], int] = pkgutil.resolve_name(self.target)
        return run(arguments)


SUBCOMMANDS = {
    "train": Subcommand("hpc_marl.train:main", "[SETTING=VALUE ...]", "train a policy; alone: the main job"),
    "plot": Subcommand("hpc_marl.commands:plot", "RUN_DIR", "draw the learning curve of a run"),
    "check-env": Subcommand(
        "hpc_marl.commands:check_environment", "[env=FILE ...]", "test an environment against the contract"
    ),
}


def help_text() -> str:
    """Return what `hpc-marl --help` prints."""
    rows = {f"{name} {command.usage}": command.summary for name, command in SUBCOMMANDS.items()}
    width = max(map(len, rows)) + 3
    return "\n".join(
        [
            "usage: hpc-marl COMMAND [ARGUMENTS]",
            "",
            "Distributed multi-agent reinforcement learning for Slurm clusters.",
            "",
            "Commands:",
            *(f"  {left.ljust(width)}{summary}" for left, summary in rows.items()),
            "",
            "`hpc-marl COMMAND --help` says more; `hpc-marl --version` prints the version.",
            "Exit codes: 0 done, 1 failed, 2 wrong arguments or settings, 130 interrupted.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        print(f"hpc-marl {__version__}")
        return 0
    command = SUBCOMMANDS.get(arguments[0])
    if command is None:
        near = difflib.get_close_matches(arguments[0], SUBCOMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(
            f"error: unknown command {arguments[0]!r}; {hint}choose one of {', '.join(SUBCOMMANDS)}",
            file=sys.stderr,
        )
        return EXIT_USAGE
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
