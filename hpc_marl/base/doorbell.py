"""Doorbell: wakes a process of the same node that sleeps until there is something to see in shared memory.

    sleeper   Doorbell() -> an anonymous pipe, which selectors and zmq.Poller take      handle() travels in a message
    ringer    DoorbellButton(handle) -> opens the pipe through /proc/<pid>/fd/<fd>, checks it; ring()

Nothing lies in the file system, and whoever is killed leaves nothing behind. Ringing never waits: rings that were not
heard yet are one, and a full pipe wakes as well as one byte.

Where it matters who rang and what for, ringers `send` messages of equal size and the sleeper `receive`s them; each of
them comes once, whole, and after what its sender wrote to shared memory before.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat

import msgspec

from hpc_marl.base.network import process_start_ticks
from hpc_marl.errors import StreamError


class DoorbellHandle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What another process of this node needs to ring; plain values, fit for a message or a name entry."""

    pid: int
    fd: int
    inode: int
    """Of the pipe: tells it from a later file under the same descriptor."""
    start_ticks: int
    """Start time of the process in clock ticks since boot: tells it from a later one with the same pid."""


class Doorbell:
    """The sleeper's end.

    Example:
        >>> with Doorbell() as bell, DoorbellButton(bell.handle()) as button:
        ...     button.ring()
        ...     bell.wait(1.0), bell.wait(0.0)
        (True, False)
    """

    def __init__(self) -> None:
        # Both ends stay open here: the pipe is neither broken nor at its end, whoever comes and goes.
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def handle(self) -> DoorbellHandle:
        """Return what another process needs to ring.

        Raises:
            StreamError: /proc is not mounted.
        """
        pid = os.getpid()
        ticks = process_start_ticks(pid)
        if ticks is None:
            raise StreamError("/proc is not mounted: no other process can ring this bell")
        return DoorbellHandle(pid, self._read_fd, os.fstat(self._read_fd).st_ino, ticks)

    def fileno(self) -> int:
        """Return the descriptor, which is readable once the bell has rung."""
        return self._read_fd

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the bell rings and clear it; return False where it did not ring in time."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        if not poll.poll(max(timeout_s, 0.0) * 1000):
            return False
        self.clear()
        return True

    def clear(self) -> None:
        """Forget all rings so far; look at what they were about *after* this."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 65536)

    def receive(self) -> bytes:
        """Return the messages that were sent since the last time, one after another; empty where there are none."""
        try:
            return os.read(self._read_fd, 65536)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Let go of the pipe."""
        if self._read_fd >= 0:
            os.close(self._read_fd)
            os.close(self._write_fd)
            self._read_fd = self._write_fd = -1

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class DoorbellButton:
    """The ringer's end.

    Raises:
        StreamError: the process is gone, or what is there now is not this bell.
    """

    def __init__(self, handle: DoorbellHandle) -> None:
        if process_start_ticks(handle.pid) != handle.start_ticks:
            raise StreamError(f"process {handle.pid}, whose bell this is, is gone or out of sight")
        path = f"/proc/{handle.pid}/fd/{handle.fd}"
        try:
            target = os.readlink(path)
            if target != f"pipe:[{handle.inode}]":
                raise StreamError(f"{path} is {target}, not the bell: the descriptor was reused")
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise StreamError(f"cannot open {path}: {error.strerror}") from error
        status = os.fstat(self._fd)
        if not (stat.S_ISFIFO(status.st_mode) and status.st_ino == handle.inode):
            self.close()
            raise StreamError(f"{path} is no longer the bell: the descriptor was reused")
        if status.st_uid != os.geteuid():
            self.close()
            raise StreamError(f"the bell belongs to uid {status.st_uid}, not to {os.geteuid()}")

    def ring(self) -> None:
        """Wake the sleeper; no effect where it is gone."""
        # Full: it has been rung often and will wake. Broken: nobody is left to be woken.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, b"\1")

    def send(self, message: bytes) -> bool:
        """Send a message; return False where none fits into the pipe any more.

        Args:
            message: at most 512 bytes (POSIX's PIPE_BUF): those are never torn. All of one bell are of one size that
                divides 65536.

        Raises:
            StreamError: the sleeper is gone.
        """
        try:
            os.write(self._fd, message)
        except BlockingIOError:
            return False
        except BrokenPipeError as error:
            raise StreamError("whose bell this was is gone") from error
        return True

    def fileno(self) -> int:
        """Return the descriptor; for select.poll it is in error once the sleeper is gone."""
        return self._fd

    def close(self) -> None:
        """Let go of the pipe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DoorbellButton:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
