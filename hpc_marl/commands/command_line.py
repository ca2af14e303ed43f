"""What the commands that look at and steer runs have in common: the trial they mean, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from hpc_marl.errors import HpcMarlError
from hpc_marl.exit_codes import EXIT_INTERRUPTED, exit_code_of
from hpc_marl.trials.reference import ROOT_VARIABLE, default_root


def trial_parser(name: str, description: str, *, reference: str = "EXP[/TRIAL]") -> argparse.ArgumentParser:
    """Return a parser of `hpc-marl NAME EXP[/TRIAL] [--root DIR]`, to which a command adds its own.

    Args:
        name: of the subcommand.
        description: what it does, in one sentence.
        reference: how the help shows the first argument; "" for a command without one.
    """
    parser = argparse.ArgumentParser(prog=f"hpc-marl {name}", description=description)
    if reference:
        parser.add_argument(
            "reference",
            metavar=reference,
            help="experiment and trial, or a run directory; the experiment alone means its newest trial",
        )
    parser.add_argument(
        "--root",
        default=default_root(),
        metavar="DIR",
        help=f"where all experiments lie; default: ${ROOT_VARIABLE}, else runs",
    )
    return parser


def run_command(command: Callable[[], int]) -> int:
    """Run the body of a command and return its exit code; errors of ours become one line on standard error."""
    try:
        return command()
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Python flushes once more when it exits, into nothing then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
