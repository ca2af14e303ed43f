"""Ways to bring the newest parameters from one process to several: hpc_marl's, and those it is compared with.

Every reader ends with arrays of its own, whole and of one version. The publisher of each way copies the weights out of
the arrays that it is given, as it must where the optimiser goes on writing to them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import zmq
from numpy.typing import NDArray

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import load_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.streams.links import Transport
from hpc_marl.streams.parameters import ParameterPublisher, ParameterReader

Weights = Mapping[str, NDArray[np.float32]]

_KEY = "benchmark/parameters/parameter_stream/trainer/0"


@dataclass(frozen=True)
class Setting:
    """What publisher and readers know before they start; plain values, since it travels to new processes."""

    directory: Path
    shapes: dict[str, tuple[int, ...]]

    @property
    def nbytes(self) -> int:
        """Of one version."""
        return sum(4 * int(np.prod(shape)) for shape in self.shapes.values())

    def open_context(self) -> RunContext:
        """Return a context of the run in `directory`, for this process."""
        sockets = SocketFactory(load_keyring(self.directory / "auth"), max_message_bytes=2**29)
        return RunContext("benchmark", "parameters", FileNameResolver(self.directory / "names"), sockets)


class Publisher(Protocol):
    """The one end."""

    def publish(self, version: int, weights: Weights) -> None:
        """Make this the newest version."""

    def close(self) -> None:
        """Let go of everything."""


class Reader(Protocol):
    """One of the other ends."""

    def poll(self) -> int | None:
        """Read the newest version if it is a new one; return its number. Never waits."""

    def close(self) -> None:
        """Let go of everything."""


class _OurPublisher:
    def __init__(self, setting: Setting, transport: Transport) -> None:
        self._context = setting.open_context()
        self._publisher = ParameterPublisher(self._context, _KEY, setting.shapes, transport=transport)

    def publish(self, version: int, weights: Weights) -> None:
        self._publisher.publish(version, weights)

    def close(self) -> None:
        self._publisher.close()
        self._context.close()


class OurReader:
    """Polls as an actor does before every step; `reader` can also wait."""

    def __init__(self, setting: Setting, transport: Transport) -> None:
        self._context = setting.open_context()
        self.reader = ParameterReader(self._context, _KEY, transport=transport)

    def poll(self) -> int | None:
        """Return the number of a version that was not there before."""
        found = self.reader.poll()
        return None if found is None else found.policy_version

    def close(self) -> None:
        """Let go of everything."""
        self.reader.close()
        self._context.close()


class _PubPublisher:
    """The weights pickled into one message of a PUB socket."""

    def __init__(self, setting: Setting) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.bind(f"ipc://{setting.directory}/parameters")

    def publish(self, version: int, weights: Weights) -> None:
        self._socket.send(pickle.dumps((version, dict(weights)), protocol=5), copy=False)

    def close(self) -> None:
        self._context.destroy(linger=0)


class _SubReader:
    def __init__(self, setting: Setting) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.CONFLATE, 1)
        self._socket.subscribe(b"")
        self._socket.connect(f"ipc://{setting.directory}/parameters")

    def poll(self) -> int | None:
        try:
            message = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        version, _ = pickle.loads(message)  # noqa: S301  this is what peers do
        assert isinstance(version, int)
        return version

    def close(self) -> None:
        self._context.destroy(linger=0)


SYSTEMS: dict[str, tuple[Callable[[Setting], Publisher], Callable[[Setting], Reader]]] = {
    "hpc_marl, shared memory": (lambda s: _OurPublisher(s, "auto"), lambda s: OurReader(s, "auto")),
    "hpc_marl, zmq under CURVE": (lambda s: _OurPublisher(s, "zmq"), lambda s: OurReader(s, "zmq")),
    "zmq PUB/SUB + pickle, ipc": (_PubPublisher, _SubReader),
}
"""Ends of every way, by name."""
