"""EarlyHost: a host process that is started before it is known for which run, and imports meanwhile what takes long.

    command --starts--> host in waiting, whose nursery imports torch
      composes the experiment, checks it, makes the run directory
      --orders, by standard input--> the host of a slot, as if it had been started for it now
      --nothing but the pipe's end--> ends

It is a child of the command with a session of its own, and is killed with the command until it has its orders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MARK_VARIABLE = "HPC_MARL_PROCESS_MARK"
"""Of this machine's hosts and all that they start; says to whom they belong."""
HOST_PROGRAM = (sys.executable, "-m", "hpc_marl.workers", "host")
_ROOM = 1024
"""Characters that `ps` can show of the arguments, once there are any."""


class Orders(NamedTuple):
    """What a host in waiting becomes.

    Attributes:
        arguments: of `python -m hpc_marl.workers`.
        environment: all of it.
        log_file: gets its output.
    """

    arguments: list[str]
    environment: dict[str, str]
    log_file: Path

    def encode(self) -> bytes:
        """Return them as they go through the pipe."""
        return json.dumps([self.arguments, self.environment, str(self.log_file)]).encode()

    @classmethod
    def decode(cls, content: bytes) -> Orders | None:
        """Return what `encode` wrote; None where there is nothing, or only a part."""
        with suppress(ValueError):
            arguments, environment, log_file = json.loads(content)
            return cls(arguments, environment, Path(log_file))
        return None


def common_environment(mark: str) -> dict[str, str]:
    """Return the environment of every host process of this machine.

    Args:
        mark: inherited by all that it starts.
    """
    # Inside an allocation of Slurm, its variables tell another job's ranks and array index.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    # The host sets its workers' threads; it needs one itself.
    threads = dict.fromkeys(THREAD_VARIABLES, "1")
    return {**inherited, **threads, "PYTHONUNBUFFERED": "1", MARK_VARIABLE: mark}


class EarlyHost:
    """The command's end.

    Raises:
        OSError: no process can be started here.

    Attributes:
        mark: the process's.
    """

    def __init__(self) -> None:
        self.mark = os.urandom(16).hex()
        self._world = _world()
        self._is_waiting = True
        output = os.memfd_create("hpc_marl-host-output")  # until it is known which log gets it
        try:
            self._process = subprocess.Popen(
                [*HOST_PROGRAM, "--ordered-by", str(os.getpid()), "--room", " " * _ROOM],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=common_environment(self.mark),
                start_new_session=True,
            )
        finally:
            os.close(output)

    def take(
        self, command: Sequence[str], environment: Mapping[str, str], log_file: Path
    ) -> subprocess.Popen[bytes] | None:
        """Make the process what `command` would be if it were started now; the caller's from here on.

        Returns:
            None where it cannot be that: another program, another world, another's already.
        """
        size = len(HOST_PROGRAM)
        if not self._is_waiting or tuple(command[:size]) != HOST_PROGRAM or self._world != _world():
            return None
        assert self._process.stdin is not None
        orders = Orders(list(command[size - 1 :]), dict(environment), log_file)
        try:
            self._process.stdin.write(orders.encode())
            self._process.stdin.close()
        except BrokenPipeError:  # it has died; a new one will say why
            self.dismiss()
            return None
        self._is_waiting = False
        return self._process

    def dismiss(self) -> None:
        """End the process, unless somebody has taken it. Can be repeated."""
        if not self._is_waiting:
            return
        self._is_waiting = False
        self._process.kill()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def _world() -> tuple[str, dict[str, str]]:
    """Return what a program that is started would find, and modules look at when they are imported."""
    return os.getcwd(), dict(os.environ)
