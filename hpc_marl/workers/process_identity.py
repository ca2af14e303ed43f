"""What makes a forked process a process of its own: session, output, environment, random numbers, command line."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import random
import signal
import stat
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> bool:
    """Get a signal when the parent process ends, however it does; return False if it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent


def outlive_parent() -> None:
    """Get no signal any more when the parent process ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def replace_environment(environment: Mapping[str, str]) -> None:
    """Have these variables and no others."""
    os.environ.clear()
    os.environ.update(environment)


def move_output(log_file: Path, *, with_earlier: bool) -> None:
    """Say everything there from now on.

    Args:
        log_file: appended to.
        with_earlier: also what was said so far, where that went to a file.
    """
    descriptor = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if with_earlier and stat.S_ISREG(os.fstat(1).st_mode):
        os.lseek(1, 0, os.SEEK_SET)
        while content := os.read(1, 1 << 16):
            os.write(descriptor, content)
    for output in (1, 2):
        os.dup2(descriptor, output)
    os.close(descriptor)


def become(arguments: Sequence[str], environment: Mapping[str, str], log_file: Path) -> None:
    """Be what a program started as `python -m hpc_marl.workers *arguments` would be, in a new process after fork.

    Args:
        arguments: of the command line.
        environment: variables to set.
        log_file: gets the output from now on.
    """
    os.setsid()  # Ctrl-C in a terminal does not reach it
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    move_output(log_file, with_earlier=False)
    os.environ.update(environment)
    reseed()
    sys.argv[1:] = arguments
    show_command_line(arguments[:3])  # its name and its run; there is seldom room for more


def reseed() -> None:
    """Draw random numbers of our own from here on; keys and uuids come from the kernel and always do."""
    random.seed()
    # Only where somebody has loaded them: they are not ours to import here.
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()


def show_command_line(arguments: Sequence[str]) -> bool:
    """Show these arguments to `ps` and in /proc, cut to the room that the process was given when it was started.

    Returns:
        False where there is no /proc as Linux has it, or no room: then the command line stays that of the parent.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 of proc(5)
        before = ctypes.string_at(begin, end - begin) if end > begin > 0 else b""
    except (OSError, IndexError, ValueError):
        return False
    program = before.split(b"\0")[:3]  # python -m hpc_marl.workers
    shown = b"\0".join([*program, *(os.fsencode(argument) for argument in arguments)])
    if len(before) < 2:
        return False
    room = len(before) - 1
    if len(shown) < room:
        shown += b"\0"  # what is left over is an argument of blanks
    ctypes.memmove(begin, shown[:room].ljust(room) + b"\0", len(before))
    return True


def leave(code: int) -> NoReturn:
    """End this process as the interpreter does, but without taking apart what it has in memory.

    That would touch, and so copy, everything that a forked process shares; with torch it takes a third of a second.
    """
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
