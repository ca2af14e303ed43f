"""What it takes one controller to have N workers answer: all at once, beside one after the other.

N real servers (ZmqServer: keys, names, heartbeats) in a few processes, because two cores hold no thousand of them;
each process answers for its servers in turn, as they would on machines of their own, only one after the other

group_request       ours, all at once, one connection each that stays
one by one          the same connections, a `request` after the other
... a fresh socket  what most home-made systems do: connect, ask, close, for each

python benchmarks/group_request.py [--servers 100 1000] [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import zmq
from measuring.comparisons import Comparison, comparison_table
from measuring.reporting import machine_facts

from hpc_marl.base import names
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.rpc_messages import Request, RequestIds, decode_reply, result_of
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import create_keyring, load_keyring
from hpc_marl.base.serialization import encode
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.control.worker_control import ZmqServer, ZmqWorkerControl
from hpc_marl.runs.session import raise_descriptor_limit

GROUP, ONE_BY_ONE, FRESH = "group_request", "one by one, persistent", "one by one, a fresh socket per call"
SERVERS_PER_PROCESS = 250
GOALS = {ONE_BY_ONE: 0.8, FRESH: 0.25}
"""Time of group_request at most, as a share of these."""
_HEARTBEAT_S = 10.0  # as a run of a thousand workers has


def context_of(directory: Path) -> RunContext:
    """Return the surroundings of one process."""
    resolver = FileNameResolver(directory / "names")
    return RunContext("benchmark", "group", resolver, SocketFactory(load_keyring(directory / "auth")))


def serve(directory: Path, first: int, count: int) -> None:
    """Be some of the servers until killed."""
    raise_descriptor_limit()
    with context_of(directory) as context:
        servers: dict[zmq.Socket[bytes], ZmqServer] = {}
        poller = zmq.Poller()
        for index in range(first, first + count):
            mine = replace(context, incarnation=uuid.uuid4().hex)
            server = ZmqServer(
                "benchmark", "group", f"actor/{index}", context=mine, heartbeat_interval_s=_HEARTBEAT_S
            )
            server.register_handler("ping", lambda: "READY")
            servers[server.socket] = server
            poller.register(server.socket, zmq.POLLIN)
        print("ready", flush=True)
        while True:
            for socket, _ in poller.poll():
                servers[socket].handle_requests()


class Plain:
    """The peer: plain sockets with our keys and our wire, without deadlines, monitors or anything else."""

    def __init__(self, context: RunContext, records: Sequence[ServiceRecord]) -> None:
        self._context, self._records, self._ids = context, records, RequestIds()
        self._lasting = [self._connect(record) for record in records]

    def persistent(self) -> None:
        """Ask everybody in turn over connections that stay."""
        for socket in self._lasting:
            self._ask(socket)

    def fresh(self) -> None:
        """Ask everybody in turn over a connection of its own."""
        for record in self._records:
            socket = self._connect(record)
            self._ask(socket)
            socket.close()

    def _connect(self, record: ServiceRecord) -> zmq.Socket[bytes]:
        return self._context.sockets.connect(zmq.DEALER, record.hosts, record.port, record.public_key)

    def _ask(self, socket: zmq.Socket[bytes]) -> None:
        call = Request(self._ids.client, self._ids.next(), "ping", 30_000, "", {})
        socket.send_multipart([b"", encode(call)])
        reply = decode_reply(socket.recv_multipart()[1])
        assert result_of(reply) == "READY"


def measure(num_servers: int, num_repeats: int) -> dict[str, list[float]]:
    """Return way -> time [ms] of every repeat; the ways take turns."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        create_keyring(directory / "auth")
        for first in range(0, num_servers, SERVERS_PER_PROCESS):
            _start(directory, first, min(SERVERS_PER_PROCESS, num_servers - first), stack)
        context = stack.enter_context(context_of(directory))
        panel = stack.enter_context(ZmqWorkerControl("benchmark", "group", context))
        workers = panel.auto_connect()
        keys = [names.worker("benchmark", "group", name) for name in workers]
        records = [record for key in keys if (record := context.lookup(key)) is not None]
        assert len(records) == num_servers
        plain = Plain(context, records)
        ways: dict[str, Callable[[], object]] = {
            GROUP: lambda: [response.error for response in panel.group_request("ping") if response.error],
            ONE_BY_ONE: plain.persistent,
            FRESH: plain.fresh,
        }
        assert not ways[GROUP](), "everybody answers"
        found: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(num_repeats):
            print(f"{num_servers} servers, repeat {repeat + 1} of {num_repeats}", file=sys.stderr)
            for way, call in ways.items():
                started = time.perf_counter()
                call()
                found[way].append(1000 * (time.perf_counter() - started))
    return found


def _start(directory: Path, first: int, count: int, stack: ExitStack) -> None:
    command = [sys.executable, __file__, "--directory", str(directory), "--serve", str(first), str(count)]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--quick", action="store_true", help="few servers, few repeats")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.directory, *options.serve)
        return
    raise_descriptor_limit()
    print(machine_facts())
    for number in [20] if options.quick else options.servers:
        found = measure(number, 3 if options.quick else 7)
        rows = [Comparison(GROUP, found[GROUP], found[way], GOALS[way]) for way in GOALS]
        named = [replace(row, what=f"{GROUP}, of {way}") for row, way in zip(rows, GOALS, strict=True)]
        others = [Comparison(way, found[way], found[way]) for way in GOALS]
        print(f"\n{number:,} servers, ms until all have answered\n")
        print(comparison_table([*named, *others], "ratio"))


if __name__ == "__main__":
    main()
