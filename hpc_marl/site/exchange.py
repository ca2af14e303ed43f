"""How the machines of a doctor's visit try each other out, with the project's own name service and RPC.

login node            node `cpu`                          names
wait facts/cpu   <--  add facts/cpu                       what the node is like
add ping/cpu/0   -->  wait, add pong/cpu/0                how long a name takes to be seen, both ways
clock()          -->  RPC at each published address       which address answers, round trip, clock
                      clock() of `gpu` and of the login   the same between nodes: reach/cpu/gpu
add bye          -->  wait bye, end
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import msgspec
import zmq

from hpc_marl.base import names
from hpc_marl.base.network import host_identity
from hpc_marl.base.rpc import RequestHandler, RequestIds, RpcChannel, poll_channels, serve_requests
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.base.sockets import BoundSocket
from hpc_marl.errors import ConfigError, HpcMarlError

RUN_UUID = "visit"
LOGIN = "login"
NUM_PINGS = 5
_NUM_CALLS = 5
_CALL_TIMEOUT_S = 5.0


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """What became of calling a machine at one of its addresses."""

    address: str
    port: int
    round_trip_s: float = -1.0
    """The least of several; -1 where nothing answered."""
    clock_offset_s: float = 0.0
    """That machine's clock minus this one's; wrong by half a round trip at most."""
    problem: str = ""

    @property
    def answered(self) -> bool:
        """Whether it did."""
        return self.round_trip_s >= 0


class Pong(msgspec.Struct, frozen=True):
    """When a node has seen a name, by its own clock."""

    seen: float


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """All addresses of one machine, called from another."""

    addresses: list[Reached]


class Exchange:
    """One machine's part: its context, and a thread that answers `clock()`.

    Args:
        directory: of the visit.
        name: of this machine: `login`, or the probe's.
        interface: where workers listen.
        port_range: ports they may use.

    Attributes:
        context: the names and sockets.
        hosts: addresses that are listened at.
        port: at each of them.
        problem: why nothing is listened at; "" if something is.
    """

    def __init__(
        self, directory: RunDirectory, name: str, interface: str | None, port_range: tuple[int, ...]
    ) -> None:
        self.name = name
        self.hosts: tuple[str, ...] = ()
        self.port = 0
        self.problem = ""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self.context = RunContext.open(directory, RUN_UUID, interface=interface, port_range=port_range)
        except ConfigError as error:
            self.problem = str(error)
            self.context = RunContext.open(directory, RUN_UUID, interface=None)
            return
        try:
            socket = self.context.sockets.bind(zmq.REP, self.context.bind_hosts)
        except OSError as error:
            self.problem = str(error)
            return
        self.hosts, self.port = socket.hosts, socket.port
        self._thread = threading.Thread(target=self._answer, args=(socket,), name="doctor", daemon=True)
        self._thread.start()
        self.context.publish(self._key(name), socket)

    def _key(self, name: str) -> str:
        return names.worker(self.context.experiment_name, self.context.trial_name, name)

    def _answer(self, socket: BoundSocket) -> None:
        handler = RequestHandler()
        handler.register("clock", time.time)
        while not self._over.is_set():
            serve_requests(socket.socket, handler, timeout_s=0.1)

    def lookup(self, name: str) -> ServiceRecord | None:
        """Return how to reach a machine that has published itself; None for one that has not."""
        return self.context.lookup(self._key(name))

    def tell(self, key: str, value: msgspec.Struct | None = None) -> None:
        """Publish a value; None: the name alone matters."""
        text = "" if value is None else msgspec.json.encode(value).decode()
        self.context.resolver.add(key, text, replace=True)

    def hear(self, key: str, timeout_s: float) -> str:
        """Wait for a value and return its JSON.

        Raises:
            NameWaitTimeoutError: it did not appear.
        """
        return self.context.resolver.wait(key, timeout_s)

    def reach(self, name: str) -> Reach:
        """Call a machine at each of its addresses; there are none where it has published none."""
        record = self.lookup(name)
        if record is None:
            return Reach(addresses=[])
        calls = [_Call(self.context, record, address) for address in record.addresses_for(host_identity())]
        try:
            for _ in range(_NUM_CALLS):
                _call_once([call for call in calls if not call.problem])
            return Reach(addresses=[call.result() for call in calls])
        finally:
            for call in calls:
                call.channel.close()

    def close(self) -> None:
        """Stop answering and withdraw what was published."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.context.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Call:
    """Calls to one address."""

    def __init__(self, context: RunContext, record: ServiceRecord, address: str) -> None:
        self.address = address
        self.port = record.port
        self.channel = RpcChannel(
            context.sockets, [address], record.port, record.public_key, request_ids=RequestIds()
        )
        self.problem = ""
        self.best: tuple[float, float] | None = None

    def result(self) -> Reached:
        """Return the best call."""
        if self.best is None:
            return Reached(address=self.address, port=self.port, problem=self.problem)
        return Reached(
            address=self.address, port=self.port, round_trip_s=self.best[0], clock_offset_s=self.best[1]
        )


def _call_once(calls: Sequence[_Call]) -> None:
    """Call all of them at once, so that those that do not answer are waited for together."""
    started = time.time()
    clock_started = time.monotonic()
    waiting = {call: call.channel.submit("clock", {}, _CALL_TIMEOUT_S) for call in calls}
    while waiting:
        poll_channels([call.channel for call in waiting])
        elapsed_s = time.monotonic() - clock_started
        for call in [call for call, pending in waiting.items() if pending.done]:
            pending = waiting.pop(call)
            try:
                there = float(pending.result())
            except HpcMarlError as error:
                call.problem = str(error)
                continue
            measured = (elapsed_s, there - (started + elapsed_s / 2))
            call.best = measured if call.best is None else min(call.best, measured)
