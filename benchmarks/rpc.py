"""What one remote call costs: ours (authenticated, encrypted, executed once) beside plain pyzmq and lower limits.

client process --one call at a time--> server process, both on this machine, TCP loopback; p50 of many calls

pyzmq REQ/REP + pickle      what most home-made systems do: no keys, no deadline, wedges when a peer dies
... a fresh socket per call what they do when a peer has died
raw TCP                     the limit: no library, no threads

python benchmarks/rpc.py [--quick]
"""

from __future__ import annotations

import argparse
import multiprocessing.connection
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import zmq
from measuring.comparisons import Comparison, comparison_table
from measuring.reporting import machine_facts

from hpc_marl.base.rpc import RpcClient, RpcServer
from hpc_marl.base.security import create_keyring, load_keyring
from hpc_marl.base.sockets import SocketFactory

OURS, CURVE, PICKLE, FRESH, PIPE, RAW = (
    "hpc_marl RpcClient, CURVE",
    "pyzmq DEALER/REP, CURVE, no encoding",
    "pyzmq REQ/REP + pickle",
    "pyzmq REQ/REP + pickle, a fresh socket per call",
    "multiprocessing.connection",
    "raw TCP, no encoding",
)
PAYLOADS = {"small": 16, "64 KiB": 65536}
GOAL = 1.2
"""Of the time of pyzmq REQ/REP + pickle, for a small call."""

Call = Callable[[bytes], object]


def serve(kind: str, keys: Path) -> None:
    """Answer calls until killed; print the port first."""
    if kind == OURS:
        server = RpcServer(host="localhost", keyring=load_keyring(keys))
        server.register_handler("echo", lambda data: data)
        print(server.port, flush=True)
        while True:
            server.handle_requests(timeout=10.0)
    if kind == CURVE:
        keyring = load_keyring(keys)
        pair = (keyring.server_public, keyring.server_secret)
        factory = SocketFactory(keyring)  # which closes its sockets when it is dropped
        bound = factory.bind(zmq.REP, ["127.0.0.1"], server_keys=pair)
        print(bound.port, flush=True)
        while True:
            bound.socket.send(bound.socket.recv())
    if kind in (PICKLE, FRESH):
        rep = zmq.Context().socket(zmq.REP)
        port = rep.bind_to_random_port("tcp://127.0.0.1")
        print(port, flush=True)
        while True:
            rep.send(pickle.dumps(pickle.loads(rep.recv())["data"]))  # noqa: S301  the peer does
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    one, _ = listening.accept()
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind == PIPE:
        pipe: Any = multiprocessing.connection.Connection(one.detach())
        with suppress(EOFError, ConnectionResetError):
            while True:
                pipe.send(pipe.recv()["data"])
        return
    while data := one.recv(1 << 20):
        one.sendall(data)


def connect(kind: str, port: int, keys: Path, stack: ExitStack) -> Call:
    """Return a function that does one call."""
    if kind == OURS:
        client = stack.enter_context(RpcClient("localhost", port, keyring=load_keyring(keys)))
        return lambda data: client.request("echo", data=data)
    if kind == CURVE:
        sockets = stack.enter_context(SocketFactory(load_keyring(keys)))
        key = sockets.keyring.server_public
        dealer = sockets.connect(zmq.DEALER, ["127.0.0.1"], port, key, options={zmq.IMMEDIATE: 0})

        def through_curve(data: bytes) -> object:
            dealer.send(b"", zmq.SNDMORE)
            dealer.send(data)
            return dealer.recv(), dealer.recv()

        return through_curve
    if kind in (PICKLE, FRESH):
        context = zmq.Context()
        stack.callback(context.destroy)

        def ask(req: zmq.Socket[bytes], data: bytes) -> object:
            req.send(pickle.dumps({"command": "echo", "data": data}))
            return pickle.loads(req.recv())  # noqa: S301  the peer does

        def fresh(data: bytes) -> object:
            with context.socket(zmq.REQ) as req:
                req.connect(f"tcp://127.0.0.1:{port}")
                return ask(req, data)

        if kind == FRESH:
            return fresh
        lasting = context.socket(zmq.REQ)
        lasting.connect(f"tcp://127.0.0.1:{port}")
        return lambda data: ask(lasting, data)
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind == PIPE:
        pipe: Any = multiprocessing.connection.Connection(connection.detach())
        stack.callback(pipe.close)

        def through_pipe(data: bytes) -> object:
            pipe.send({"command": "echo", "data": data})
            return pipe.recv()

        return through_pipe
    stack.callback(connection.close)

    def raw(data: bytes) -> object:
        connection.sendall(data)
        left = len(data)
        while left:
            left -= len(connection.recv(left))
        return data

    return raw


def p50_us(call: Call, data: bytes, num_calls: int) -> float:
    """Return the median time of a call [us]."""
    call(data)
    times = []
    for _ in range(num_calls):
        started = time.perf_counter()
        call(data)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def measure(num_repeats: int, num_calls: int) -> dict[str, dict[str, list[float]]]:
    """Return payload -> kind -> p50 [us] of every repeat; the kinds take turns."""
    kinds = (PICKLE, OURS, CURVE, FRESH, PIPE, RAW)
    found: dict[str, dict[str, list[float]]] = {size: {kind: [] for kind in kinds} for size in PAYLOADS}
    with ExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys"
        create_keyring(keys)
        calls = {kind: _start(kind, keys, stack) for kind in kinds}
        for repeat in range(num_repeats):
            print(f"repeat {repeat + 1} of {num_repeats}", file=sys.stderr)
            for size, num_bytes in PAYLOADS.items():
                for kind, call in calls.items():
                    found[size][kind].append(p50_us(call, bytes(num_bytes), num_calls))
    return found


def _start(kind: str, keys: Path, stack: ExitStack) -> Call:
    command = [sys.executable, __file__, "--serve", kind, "--keys", str(keys)]
    server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(server.kill)
    assert server.stdout is not None
    return connect(kind, int(server.stdout.readline()), keys, stack)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fast look, less certain")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.keys)
        return
    found = measure(*((3, 200) if options.quick else (15, 1000)))
    print(machine_facts())
    for size, values in found.items():
        goals = {OURS: GOAL} if size == "small" else {}
        rows = [Comparison(kind, values[kind], values[PICKLE], goals.get(kind)) for kind in values]
        print(f"\nOne call, {size}, us\n")
        print(comparison_table(rows, f"of {PICKLE}"))


if __name__ == "__main__":
    main()
