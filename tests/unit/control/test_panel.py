"""ZmqServer and ZmqWorkerControl against each other, with everything that can go wrong between them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from hpc_marl.base import name_resolve, names
from hpc_marl.base.name_resolve import NameResolver
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import default_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.control.worker_control import ZmqServer, ZmqWorkerControl
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import (
    BadRequestError,
    ConfigError,
    MessageTooLargeError,
    NameResolveError,
    NameWaitTimeoutError,
    RemoteError,
    RpcError,
    RpcTimeoutError,
    StalePeerError,
    UnknownCommandError,
)
from tests.unit.control.control_fakes import PATIENCE_S, CountingWorker, eventually, running

EXPERIMENT, TRIAL = "exp", "trial"


class Stage:
    """One run in one process: a name service, sockets for servers and for the panel."""

    def __init__(self, stack: ExitStack, resolver: NameResolver) -> None:
        self.resolver = resolver
        self._stack = stack
        self.server_sockets = stack.enter_context(SocketFactory(default_keyring()))
        self.panel_sockets = stack.enter_context(SocketFactory(default_keyring()))

    def server(self, name: str, heartbeat_interval_s: float = 0.02) -> ZmqServer:
        """Return a server of a new incarnation."""
        context = RunContext(EXPERIMENT, TRIAL, self.resolver, self.server_sockets)
        server = ZmqServer(EXPERIMENT, TRIAL, name, context, heartbeat_interval_s=heartbeat_interval_s)
        self._stack.callback(server.close)
        return server

    def serving(self, name: str) -> Serving:
        """Return a server that a thread of its own serves."""
        return self._stack.enter_context(Serving(self.server(name)))

    def panel(self, timeout: float = PATIENCE_S) -> ZmqWorkerControl:
        context = RunContext(EXPERIMENT, TRIAL, self.resolver, self.panel_sockets)
        return self._stack.enter_context(ZmqWorkerControl(EXPERIMENT, TRIAL, context, timeout=timeout))


class Serving:
    """A server whose requests a thread answers until it is stopped; `busy` stops it from answering."""

    def __init__(self, server: ZmqServer) -> None:
        self.server = server
        self.entered, self.release = threading.Event(), threading.Event()
        self.calls: list[dict[str, Any]] = []
        self._stopping = threading.Event()
        server.register_handler("echo", self._echo)
        server.register_handler("block", self._block)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _echo(self, **kwargs: Any) -> list[Any]:
        self.calls.append(kwargs)
        return [self.server.worker_name, kwargs]

    def _block(self) -> str:
        self.entered.set()
        assert self.release.wait(PATIENCE_S)
        return "released"

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self.server.handle_requests(timeout=0.02)
        self.server.close()

    def stop(self) -> None:
        """Close the server in its own thread."""
        self.release.set()
        self._stopping.set()
        self._thread.join(PATIENCE_S)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack, stack.enter_context(MemoryNameResolver()))


def test_twenty_workers_are_asked_at_once(stage: Stage) -> None:
    everybody = sorted([f"actor/{i}" for i in range(17)] + ["policy/0", "policy/1", "trainer/0"])
    for name in everybody:
        stage.serving(name)
    panel = stage.panel()
    assert panel.autoconnect(timeout=PATIENCE_S) == panel.connected == everybody

    responses = panel.group_request("echo", seed=1)
    assert [response.worker_name for response in responses] == everybody
    assert all(response.result == [response.worker_name, {"seed": 1}] for response in responses)

    responses = panel.group_request("echo", worker_regex=r"policy/\d")
    assert [response.worker_name for response in responses] == ["policy/0", "policy/1"]
    assert panel.group_request("echo", worker_regex="polic") == [], "the whole name has to match"

    responses = panel.group_request("echo", worker_names=["trainer/0", "actor/3"])
    assert [response.worker_name for response in responses] == ["actor/3", "trainer/0"]

    own: dict[str, dict[str, Any]] = {
        "actor/0": {"seed": 10, "command": "c", "name": "n", "timeout": 7},
        "actor/1": {"seed": 11},
    }
    responses = panel.group_request("echo", worker_kwargs=own, rate=0.5, seed=0)
    assert [response.result[1] for response in responses] == [
        {"rate": 0.5, "seed": 10, "command": "c", "name": "n", "timeout": 7},
        {"rate": 0.5, "seed": 11},
    ]
    responses = panel.group_request("echo", worker_names=["actor/0", "actor/2"], worker_kwargs=own)
    assert [len(response.result[1]) for response in responses] == [4, 0]
    assert panel.request("actor/5", "echo", name="n", command="c", worker_name="w")[1] == {
        "name": "n",
        "command": "c",
        "worker_name": "w",
    }


def test_a_busy_worker_delays_nobody_and_its_socket_does_not_wedge(stage: Stage) -> None:
    busy = stage.serving("actor/1")
    for name in ("actor/0", "actor/2"):
        stage.serving(name)
    panel = stage.panel()
    panel.connect([f"actor/{i}" for i in range(3)])
    blocked = panel.async_request("actor/1", "block")
    eventually(lambda: (blocked.done(), busy.entered.is_set()), lambda seen: seen == (False, True))

    first, second, third = panel.group_request("echo", timeout=0.2)
    assert (first.error, third.error) == (None, None)
    assert second.timed_out
    assert isinstance(second.error, RpcTimeoutError)
    assert "actor/1" in str(second.error)
    with pytest.raises(RpcTimeoutError, match="no reply to 'block' yet"):
        blocked.result(timeout=0.01)

    busy.release.set()
    assert blocked.result() == "released"
    assert panel.request("actor/1", "echo", x=2) == ["actor/1", {"x": 2}], "not the answer to the call before"
    assert blocked.result(timeout=0.0) == "released", "an answer can be had again"


def test_what_can_go_wrong_with_a_call_has_types(stage: Stage) -> None:
    serving = stage.serving("actor/0")
    serving.server.register_handler("add", lambda x, y: x + y)
    panel = stage.panel()
    panel.auto_connect()
    with pytest.raises(RpcError, match=r"'actor/9' is not connected; connected: actor/0"):
        panel.request("actor/9", "echo")
    with pytest.raises(UnknownCommandError, match="add, block, echo"):
        panel.request("actor/0", "ecko")
    with pytest.raises(BadRequestError, match="add"):
        panel.request("actor/0", "add", x=1)
    with pytest.raises(BadRequestError):
        panel.request("actor/0", "echo", x=object())
    with pytest.raises(MessageTooLargeError):
        panel.request("actor/0", "echo", x=bytes(2**21))
    with pytest.raises(RemoteError, match="TypeError") as caught:
        panel.request("actor/0", "add", x=1, y="2")
    assert "Traceback" in caught.value.remote_traceback
    responses = panel.group_request("add", worker_names=["actor/0", "ghost/0"], x=1, y=2)
    assert responses[0].result == 3
    assert isinstance(responses[1].error, RpcError)
    assert not responses[1].timed_out


def test_an_interrupt_always_arrives(stage: Stage) -> None:
    with ExitStack() as threads:
        workers = []
        for index in range(20):
            worker = CountingWorker(stage.server(f"actor/{index}"))
            workers.append((worker, threads.enter_context(running(worker))))
        panel = stage.panel()
        panel.connect([worker.name for worker, _ in workers])
        panel.group_request("configure", config={})
        assert {response.result for response in panel.group_request("start")} == {"RUNNING"}
        assert [response.result for response in panel.group_request("interrupt")] == ["INTERRUPTED"] * 20
        for worker, thread in workers:
            thread.join(PATIENCE_S)
            assert worker.status is WorkerStatus.INTERRUPTED


def test_a_replaced_worker_is_stale_and_the_panel_goes_on_with_the_new_one(stage: Stage) -> None:
    first = stage.serving("actor/0")
    panel = stage.panel()
    panel.auto_connect()
    old = panel.refresh()["actor/0"]
    pending = panel.async_request("actor/0", "block", timeout=0.3)
    eventually(lambda: (pending.done(), first.entered.is_set()), lambda seen: seen == (False, True))
    second = stage.serving("actor/0")
    with pytest.raises(StalePeerError, match=f"actor/0 was replaced during 'block': incarnation {old}"):
        pending.result()
    assert panel.refresh()["actor/0"] != old, "the failed call has connected the new one"
    assert panel.request("actor/0", "echo")[0] == "actor/0"
    assert second.calls == [{}]
    first.stop()
    assert panel.request("actor/0", "echo")[0] == "actor/0", "the old one's end does not remove the new name"
    assert stage.panel().auto_connect() == ["actor/0"]


def test_refresh_replaces_at_once_and_fails_what_is_under_way(stage: Stage) -> None:
    stage.serving("actor/0")
    panel = stage.panel()
    panel.auto_connect()
    pending = panel.async_request("actor/0", "block")
    third = stage.serving("actor/0")
    assert panel.refresh()["actor/0"] == stage_incarnation(stage, "actor/0")
    assert pending.done()
    with pytest.raises(StalePeerError):
        pending.result()
    assert panel.heartbeats()["actor/0"].incarnation == stage_incarnation(stage, "actor/0")
    assert panel.request("actor/0", "echo") == ["actor/0", {}]
    assert third.calls == [{}]


def stage_incarnation(stage: Stage, name: str) -> str:
    context = RunContext(EXPERIMENT, TRIAL, stage.resolver, stage.panel_sockets)
    record = context.lookup(names.worker(EXPERIMENT, TRIAL, name))
    assert record is not None
    return record.incarnation


def test_a_disconnected_incarnation_is_never_connected_again(stage: Stage) -> None:
    stage.serving("actor/0")
    stage.serving("actor/1")
    panel = stage.panel()
    panel.connect(["actor/0", "actor/1"])
    pending = panel.async_request("actor/0", "block")
    panel.disconnect("actor/0")
    panel.disconnect("ghost/0")
    with pytest.raises(RpcError, match="closed"):
        pending.result()
    assert set(panel.refresh()) == set(panel.heartbeats()) == {"actor/1"}
    with pytest.raises(NameWaitTimeoutError, match="no new one has registered"):
        panel.connect(["actor/0"], timeout=0.0)
    stage.serving("actor/0")
    assert set(panel.refresh()) == {"actor/0", "actor/1"}


WORKER_PROGRAM = """
import pathlib, sys
from hpc_marl.base import name_resolve
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.control.worker_control import ZmqServer
name_resolve.configure(FileNameResolver(sys.argv[1]))
server = ZmqServer("exp", "trial", "actor/3")
def hang():
    pathlib.Path(sys.argv[2]).touch()
    while True:
        pass
server.register_handler("hang", hang)
while True:
    server.handle_requests(timeout=1.0)
"""


def test_a_worker_killed_in_mid_request_wedges_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, stack.enter_context(FileNameResolver(tmp_path / "names")))
        stage.serving("actor/2")
        hangs = tmp_path / "hangs"
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER_PROGRAM, str(tmp_path / "names"), str(hangs)]
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        panel = stage.panel()
        panel.connect(["actor/2", "actor/3"], timeout=PATIENCE_S)
        hanging = panel.async_request("actor/3", "hang", timeout=PATIENCE_S)
        eventually(lambda: (hanging.done(), hangs.exists()), lambda seen: seen == (False, True))
        # In a busy loop that holds the interpreter most of the time, heartbeats still come.
        eventually(lambda: panel.heartbeats()["actor/3"], lambda beat: beat.progress == 0)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        dead, alive = reversed(panel.group_request("echo", timeout=0.3))
        assert alive.result == ["actor/2", {}]
        assert dead.timed_out
        eventually(lambda: panel.heartbeats()["actor/3"], lambda beat: beat.age_s > 0.3)
        assert panel.refresh().keys() == {"actor/2", "actor/3"}, "its name entry is still there"

        stage.serving("actor/3")
        with pytest.raises(StalePeerError):
            panel.request("actor/3", "echo", timeout=0.2)
        assert panel.request("actor/3", "echo") == ["actor/3", {}]
        with pytest.raises(StalePeerError):
            hanging.result()


def test_garbage_at_a_workers_port_does_not_hurt_it(stage: Stage) -> None:
    serving = stage.serving("actor/0")
    record = RunContext(EXPERIMENT, TRIAL, stage.resolver, stage.panel_sockets).lookup(
        names.worker(EXPERIMENT, TRIAL, "actor/0")
    )
    assert record is not None
    for port in (record.port, record.heartbeat_port):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"cos\nsystem\n(S'touch /tmp/owned'\ntR." + os.urandom(4096))
    with_keys = stage.panel_sockets.connect(zmq.DEALER, record.hosts, record.port, record.public_key)
    for frames in (
        [b"", os.urandom(300)],
        [b""],
        [b"", b"\x91\x91\x91", b"more"],
        [os.urandom(20)],
        [b"", b""],
    ):
        with_keys.send_multipart(frames)
    panel = stage.panel()
    panel.auto_connect()
    assert panel.request("actor/0", "echo") == ["actor/0", {}]
    assert serving.calls == [{}]
    with_keys.close(linger=0)


def test_a_forged_name_entry_is_passed_over(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.serving("actor/0")
    stage.resolver.add(names.worker(EXPERIMENT, TRIAL, "actor/1"), "127.0.0.1:4711 Zm9yZ2Vk")
    panel = stage.panel()
    assert panel.auto_connect() == ["actor/0"]
    assert "ignored the name entry exp/trial/worker/actor/1" in caplog.text


def test_a_stuck_loop_shows_in_heartbeats(stage: Stage) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    class Stuck(CountingWorker):
        def _on_start(self) -> None:
            stuck.set()
            assert go_on.wait(PATIENCE_S)

    worker = Stuck(stage.server("actor/0"))
    panel = stage.panel()
    with running(worker):
        panel.auto_connect()
        panel.request("actor/0", "configure", config={})
        eventually(lambda: panel.heartbeats()["actor/0"], lambda beat: beat.progress > 0)
        starting = panel.async_request("actor/0", "start")
        assert eventually(lambda: starting.done() or stuck.is_set(), bool)
        beat = eventually(
            lambda: panel.heartbeats()["actor/0"],
            lambda beat: beat.progress_age_s > 0.2 and beat.age_s < 0.1,
        )
        assert (beat.phase, beat.status) == ("start", WorkerStatus.READY)
        go_on.set()
        assert starting.result() == "RUNNING"
        beat = eventually(
            lambda: panel.heartbeats()["actor/0"], lambda beat: beat.status is WorkerStatus.RUNNING
        )
        eventually(lambda: panel.heartbeats()["actor/0"], lambda later: later.progress > beat.progress)


def test_the_last_word_is_heard_although_the_name_is_gone(stage: Stage) -> None:
    server = stage.server("actor/0")
    worker = CountingWorker(server, fail_in="poll")
    panel = stage.panel()
    with running(worker) as thread:
        panel.auto_connect()
        eventually(lambda: panel.heartbeats()["actor/0"], lambda beat: beat.progress >= 0)
        panel.request("actor/0", "configure", config={})
        panel.request("actor/0", "start")
        thread.join(PATIENCE_S)
        server.close()
    beat = eventually(lambda: panel.heartbeats()["actor/0"], lambda beat: beat.status is WorkerStatus.ERROR)
    assert "poll was made to fail" in beat.error
    assert stage.resolver.find_subtree(names.worker_root(EXPERIMENT, TRIAL)) == []
    server.close()


def test_names_below_names_work_on_files(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, stack.enter_context(FileNameResolver(tmp_path)))
        panel = stage.panel()
        with pytest.raises(NameWaitTimeoutError, match="no worker registered below exp/trial/worker"):
            panel.auto_connect(timeout=0.0)
        with pytest.raises(NameWaitTimeoutError):
            panel.connect(["actor/3"], timeout=0.0)
        stage.serving("actor/3")
        stage.serving("actor/30")
        assert panel.auto_connect() == ["actor/3", "actor/30"]
        assert [response.result[0] for response in panel.group_request("echo")] == ["actor/3", "actor/30"]


def test_without_a_context_the_process_wide_name_service_is_used() -> None:
    with MemoryNameResolver() as resolver:
        name_resolve.configure(resolver)
        try:
            with ZmqServer(EXPERIMENT, TRIAL, "actor/0") as server:
                entry = name_resolve.get(names.worker(EXPERIMENT, TRIAL, "actor/0"))
                assert entry.split()[0] == f"{server.host}:{server.port}"
                with ZmqWorkerControl(EXPERIMENT, TRIAL) as panel, running(CountingWorker(server)):
                    panel.auto_connect()
                    assert panel.request("actor/0", "ping") == "READY"
            assert name_resolve.find_subtree(names.trial(EXPERIMENT, TRIAL)) == []
        finally:
            name_resolve.configure(None)
    with pytest.raises(NameResolveError, match="configure"):
        ZmqServer(EXPERIMENT, TRIAL, "actor/0")


def test_a_context_of_another_trial_is_refused(stage: Stage) -> None:
    context = RunContext(EXPERIMENT, "other", stage.resolver, stage.server_sockets)
    with pytest.raises(ConfigError, match="exp/other"):
        ZmqServer(EXPERIMENT, TRIAL, "actor/0", context)
    with pytest.raises(ConfigError, match="expected one of exp/trial"):
        ZmqWorkerControl(EXPERIMENT, TRIAL, context)
