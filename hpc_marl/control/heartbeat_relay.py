"""A host passes on the heartbeats of its workers: one connection of the controller carries those of a whole host.

    worker's heartbeat thread --a message--> (a socket pair) --> host's heartbeat thread --all messages--> controller

The workers' end is inherited, so only processes that the host has started can say anything there.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from hpc_marl.base.serialization import decode, encode
from hpc_marl.base.sockets import BoundSocket
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ProtocolError

VARIABLE = "HPC_MARL_HEARTBEATS"
"""Tells a worker the descriptor, the port and the public key of its host's heartbeats."""
RELAY_INTERVAL_S = 1.0
"""A worker speaks to its host at least so often: that costs no network."""
_MAX_MESSAGE_BYTES = 1 << 16
_MAX_ERROR_CHARACTERS = 8000
_LAST_WORD_S = 1.0


class HeartbeatMessage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One heartbeat on the wire; `age_s` is the time that it has spent at its host."""

    worker_name: str
    incarnation: str
    status: WorkerStatus
    phase: str
    progress: int
    metrics: dict[str, float | int | str]
    error: str
    age_s: float = 0.0
    fails_for_good: bool = False


class HeartbeatRelay:
    """The host's end: takes in what its workers say.

    Attributes:
        descriptor: readable when something was said.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._heard: dict[str, tuple[HeartbeatMessage, float]] = {}

    @property
    def descriptor(self) -> int:
        """Readable when something was said."""
        return self._ours.fileno()

    @property
    def workers_descriptor(self) -> int:
        """To be inherited by the workers."""
        return self._theirs.fileno()

    def environment(self, heartbeat: BoundSocket) -> dict[str, str]:
        """Return what a worker must find in its environment to speak through this relay.

        Args:
            heartbeat: where the host publishes.
        """
        return {VARIABLE: f"{self.workers_descriptor} {heartbeat.port} {heartbeat.public_key.decode()}"}

    def take(self) -> bool:
        """Take in what was said; return whether a worker is another, or stands elsewhere, than before."""
        has_news = False
        while True:
            try:
                content = self._ours.recv(_MAX_MESSAGE_BYTES)
                message = decode(content, HeartbeatMessage)
            except BlockingIOError:
                return has_news
            except ProtocolError:
                continue
            before, _ = self._heard.get(message.worker_name, (None, 0.0))
            has_news |= (
                before is None
                or before.status is not message.status
                or before.incarnation != message.incarnation
            )
            self._heard[message.worker_name] = message, time.monotonic()

    def messages(self) -> list[HeartbeatMessage]:
        """Return the newest of every worker, with its age."""
        now = time.monotonic()
        return [
            msgspec.structs.replace(message, age_s=round(now - heard_s, 3))
            for message, heard_s in self._heard.values()
        ]

    def leave_to_worker(self) -> None:
        """In a new process that is a worker: keep nothing but the descriptor that is its to speak through."""
        self._ours.close()
        self._theirs.detach()

    def close(self) -> None:
        """Hear nobody any more. Can be repeated."""
        self._ours.close()
        self._theirs.close()


@dataclass(frozen=True)
class HostHeartbeats:
    """The worker's end: its host passes on what is said here.

    Attributes:
        descriptor: of the socket to the host.
        port: where the host publishes.
        public_key: the CURVE key there.
    """

    descriptor: int
    port: int
    public_key: bytes

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> HostHeartbeats | None:
        """Return what the environment tells; None where there is no host that passes heartbeats on."""
        words = environment.get(VARIABLE, "").split(" ")
        if len(words) != 3 or not words[0].isdigit() or not words[1].isdigit():
            return None
        try:
            os.set_inheritable(int(words[0]), False)
            os.set_blocking(int(words[0]), False)
        except OSError:  # a process of the worker's own, which has not inherited it
            return None
        return cls(int(words[0]), int(words[1]), words[2].encode())

    def say(self, message: HeartbeatMessage, is_last: bool = False) -> None:
        """Send a heartbeat to the host; one that does not listen now hears the next one."""
        content = encode(message)
        if len(content) > _MAX_MESSAGE_BYTES:
            content = encode(msgspec.structs.replace(message, error=message.error[-_MAX_ERROR_CHARACTERS:]))
        try:
            if is_last:
                select.select([], [self.descriptor], [], _LAST_WORD_S)
            os.write(self.descriptor, content)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return
