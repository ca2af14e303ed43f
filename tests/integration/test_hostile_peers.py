"""A hostile pickle and garbage to every listening port of a running training: nothing happens."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import socket
from pathlib import Path

import psutil
import zmq

from tests.integration.conftest import Train


class _Hostile:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def listening_ports(pids: list[int]) -> list[int]:
    connections = [
        connection for pid in pids for connection in psutil.Process(pid).net_connections(kind="tcp")
    ]
    return sorted({connection.laddr.port for connection in connections if connection.status == "LISTEN"})


def test_hostile_bytes_change_nothing(train: Train, tmp_path: Path) -> None:
    run = train("total_env_steps=200000", "inference=remote", "streams.transport=zmq")
    run.wait_until(run.trained(1000))
    workers = ("trainer/0", "policy/0", "actor/0", "actor/1")
    pids = {name: run.wait_until(lambda name=name: run.worker_pid(name)) for name in workers}
    assert (
        len(listening_ports(list(pids.values()))) >= len(workers) + 3
    )  # RPC; samples, parameters, inference
    everybody = psutil.Process(run.process.pid).children(recursive=True)  # the host, too, with its heartbeats
    ports = listening_ports([run.process.pid, *(process.pid for process in everybody)])
    assert len(ports) >= len(workers) + 3 + 2
    trap = tmp_path / "unpickled"
    payload = pickle.dumps(_Hostile(trap))
    noise = random.Random(0)
    for port in ports:
        _send_raw(port, payload)
        _send_raw(port, noise.randbytes(4096))
        _send_raw(port, b"GET / HTTP/1.1\r\n\r\n" + payload)
    _send_zmq(ports, payload)
    reached = run.metrics()[-1]["env_steps"]
    run.wait_until(run.trained(reached + 3000))
    assert {name: run.worker_pid(name) for name in workers} == pids, "a worker was replaced"
    output = run.finish_well()
    assert not trap.exists()
    assert "started again" not in output


def _send_raw(port: int, data: bytes) -> None:
    closed_on_us = (BrokenPipeError, ConnectionResetError)  # as it should be
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link, contextlib.suppress(*closed_on_us):
        link.sendall(data)


def _send_zmq(ports: list[int], payload: bytes) -> None:
    """Talk ZMTP without encryption, and with keys that nobody knows."""
    context = zmq.Context()
    sockets = []
    for port in ports:
        for with_keys in (False, True):
            peer = context.socket(zmq.DEALER)
            peer.linger = 0
            if with_keys:
                peer.curve_publickey, peer.curve_secretkey = zmq.curve_keypair()
                peer.curve_serverkey, _ = zmq.curve_keypair()
            peer.connect(f"tcp://127.0.0.1:{port}")
            peer.send_multipart([b"", payload], flags=zmq.NOBLOCK)
            sockets.append(peer)
    poller = zmq.Poller()
    for peer in sockets:
        poller.register(peer, zmq.POLLIN)
    assert poller.poll(1000) == [], "a stranger got an answer"
    for peer in sockets:
        peer.close()
    context.term()
