from __future__ import annotations

import os
import socket as tcp
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from hpc_marl.base import names
from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.network import host_identity
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import Keyring, create_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.errors import NameEntryExistsError, NameWaitTimeoutError, SecurityError

KEY = names.worker("exp", "trial", "actor/0")


@pytest.fixture
def context(keyring: Keyring) -> Iterator[RunContext]:
    with RunContext("exp", "trial", MemoryNameResolver(), SocketFactory(keyring)) as made:
        yield made


def test_what_is_published_is_found(context: RunContext) -> None:
    assert context.lookup(KEY) is None
    service = context.sockets.bind(zmq.REP, context.bind_hosts)
    heartbeat = context.sockets.bind(zmq.PUB, context.bind_hosts)
    record = context.publish(KEY, service, heartbeat=heartbeat, extra={"epoch": 2})
    assert context.lookup(KEY) == context.wait(KEY, 1.0) == record
    assert (record.hosts, record.port, record.public_key) == (
        ("127.0.0.1",),
        service.port,
        service.public_key,
    )
    assert (record.heartbeat_port, record.heartbeat_public_key) == (heartbeat.port, heartbeat.public_key)
    assert (record.pid, record.incarnation, record.extra) == (os.getpid(), context.incarnation, {"epoch": 2})
    assert record.host_identity == host_identity()
    assert context.resolver.get(KEY).split()[0] == f"127.0.0.1:{service.port}"


def test_a_newer_incarnation_takes_the_name_only_if_told(context: RunContext) -> None:
    first, second = (context.sockets.bind(zmq.REP, context.bind_hosts) for _ in range(2))
    context.publish(KEY, first)
    with pytest.raises(NameEntryExistsError):
        context.publish(KEY, second, replace=False)
    context.publish(KEY, second)
    found = context.lookup(KEY)
    assert found is not None and found.port == second.port


def test_forged_entries_are_not_believed(context: RunContext, other_keyring: Keyring) -> None:
    with SocketFactory(other_keyring) as foreign_sockets:
        foreign = RunContext("exp", "trial", context.resolver, foreign_sockets)
        foreign.publish(KEY, foreign_sockets.bind(zmq.REP, ["127.0.0.1"]))
        with pytest.raises(SecurityError):
            context.lookup(KEY)
        with pytest.raises(SecurityError):
            context.wait(KEY, 1.0)


def test_waiting_ends_when_it_appears_or_in_time(context: RunContext) -> None:
    with pytest.raises(NameWaitTimeoutError):
        context.wait(KEY, 0.01)
    service = context.sockets.bind(zmq.REP, context.bind_hosts)
    thread = threading.Thread(target=context.publish, args=(KEY, service))
    thread.start()
    assert context.wait(KEY, 5.0).port == service.port
    thread.join()


def test_processes_of_a_run_meet_through_its_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    create_keyring(directory.auth("abc"))
    with (
        RunContext.open(directory, "abc", interface=None) as worker,
        RunContext.open(directory, "abc", interface=None) as controller,
    ):
        bound = worker.sockets.bind(zmq.REP, worker.bind_hosts)
        worker.publish(KEY, bound)
        found = controller.wait(KEY, 5.0)
        client = controller.sockets.connect(zmq.DEALER, found.hosts, found.port, found.public_key)
        client.send_multipart([b"", b"hello"])
        assert bound.socket.poll(5000)
        assert bound.socket.recv() == b"hello"
        assert worker.incarnation != controller.incarnation
        worker.close()
        assert controller.lookup(KEY) is None


def test_a_run_without_keys_or_with_open_doors_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    with pytest.raises(SecurityError, match="does not exist"):
        RunContext.open(directory, "abc", interface=None)
    create_keyring(directory.auth("abc"))
    directory.path.chmod(0o770)
    with pytest.raises(SecurityError, match="chmod 700"):
        RunContext.open(directory, "abc", interface=None)


def test_a_run_listens_only_at_its_ports(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    create_keyring(directory.auth("0" * 32))
    with tcp.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        context = RunContext.open(directory, "0" * 32, interface=None, port_range=(port, port))
        with context, pytest.raises(OSError, match=f"port {port}-{port}"):
            context.sockets.bind(zmq.REP, context.bind_hosts)
