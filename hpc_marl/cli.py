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
    "attach": Subcommand(
        "hpc_marl.commands.attach:attach", "EXP[/TRIAL]", "drive a run that is under way, or watch it"
    ),
    "status": Subcommand(
        "hpc_marl.commands.status:status", "EXP[/TRIAL]", "show where a trial, or a sweep of trials, stands"
    ),
    "list": Subcommand(
        "hpc_marl.commands.status:list_trials", "[--root DIR]", "list all experiments and their trials"
    ),
    "top": Subcommand("hpc_marl.commands.top:main", "EXP[/TRIAL]", "watch a run live"),
    "logs": Subcommand(
        "hpc_marl.commands.logs:main",
        "EXP[/TRIAL] [KIND[/INDEX]] [-f]",
        "show the logs of a run, merged by time",
    ),
    "pause": Subcommand("hpc_marl.commands.steer:pause", "EXP[/TRIAL]", "have all workers stand still"),
    "resume": Subcommand("hpc_marl.commands.steer:resume", "EXP[/TRIAL]", "have a paused run go on"),
    "scale": Subcommand(
        "hpc_marl.commands.steer:scale", "EXP[/TRIAL] actors=N", "change how many actors a run has"
    ),
    "checkpoint": Subcommand("hpc_marl.commands.steer:checkpoint", "EXP[/TRIAL]", "write a checkpoint now"),
    "stop": Subcommand(
        "hpc_marl.commands.steer:stop", "EXP[/TRIAL]", "end a run in order, with a checkpoint"
    ),
    "cancel": Subcommand("hpc_marl.commands.steer:cancel", "EXP[/TRIAL]", "end a run and its jobs at once"),
    "report": Subcommand(
        "hpc_marl.commands.report:report", "EXP[/TRIAL]", "say how well a run used its CPUs, GPUs and memory"
    ),
    "plot": Subcommand(
        "hpc_marl.commands.plot:plot",
        "EXP[/TRIAL]",
        "draw the learning curves of a run, or of a sweep's trials",
    ),
    "check-env": Subcommand(
        "hpc_marl.commands.check_env:check_environment",
        "[env=FILE ...]",
        "test an environment against the contract",
    ),
    "cluster": Subcommand(
        "hpc_marl.site.cluster_init:main", "init [NAME]", "describe this site's Slurm in a profile"
    ),
    "doctor": Subcommand("hpc_marl.site.doctor:main", "cluster=SITE ...", "test what runs need of a site"),
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
