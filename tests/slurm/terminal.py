"""A terminal for commands on the login node: what a person sees and types."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from tests.slurm.lab_runs import Session, SlurmRun

CTRL_C = b"\x03"


class Terminal:
    """Starts a command with a pseudo-terminal as its own; a context manager.

    Args:
        run: whose command it is.
        arguments: of `hpc-marl`.

    Attributes:
        session: the command.
    """

    def __init__(self, run: SlurmRun, *arguments: str) -> None:
        self._master, slave = os.openpty()
        self.session: Session = run.start(*arguments, terminal=slave)
        os.close(slave)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.session.end()
        self._reader.join()
        os.close(self._master)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def _read(self) -> None:
        # A terminal that nobody reads would stop the command.
        with suppress(OSError), open(self.session.output_file, "ab", buffering=0) as file:
            while text := os.read(self._master, 4096):
                file.write(text)
