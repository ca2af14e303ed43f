"""The life of a Worker, driven through a queue instead of sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpc_marl.control import worker_base
from hpc_marl.control.worker_base import PollResult, Worker
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import BadRequestError, ConfigError, InvalidTransitionError, WorkerError
from tests.unit.control.control_fakes import PATIENCE_S, CountingWorker, QueueServer, running

READY, RUNNING, PAUSED = WorkerStatus.READY, WorkerStatus.RUNNING, WorkerStatus.PAUSED
COMPLETED, INTERRUPTED, ERROR = WorkerStatus.COMPLETED, WorkerStatus.INTERRUPTED, WorkerStatus.ERROR


@pytest.fixture
def server() -> QueueServer:
    return QueueServer()


def test_a_life_from_ready_to_completed(server: QueueServer) -> None:
    worker = CountingWorker(server)
    with running(worker) as thread:
        assert server.call("ping") == "READY"
        assert server.call("configure", config={"limit": 0}) == "READY"
        assert server.call("start") == server.call("start") == "RUNNING"
        assert worker.polled.wait(PATIENCE_S)
        assert server.call("reconfigure", limit=-1) == "RUNNING"
        assert server.call("pause") == server.call("pause") == "PAUSED"
        polls = worker.polls
        assert server.call("status")["status"] == "PAUSED"
        assert worker.polls == polls, "a paused worker does not poll"
        assert server.call("start") == "RUNNING"
        assert server.call("exit") == "COMPLETED"
        thread.join(PATIENCE_S)
    assert worker.status is COMPLETED
    assert server.said == [READY, RUNNING, PAUSED, RUNNING, COMPLETED]
    assert worker.hooks == ["configure", "start", "reconfigure", "pause", "start", "exit COMPLETED"]


def test_finished_work_is_reported_until_exit(server: QueueServer) -> None:
    worker = CountingWorker(server)
    with running(worker) as thread:
        server.call("configure", config={"limit": 5})
        server.call("start")
        while server.call("ping") != "COMPLETED":
            assert thread.is_alive()
        status = server.call("status")
        assert (status["status"], status["metrics"]) == ("COMPLETED", {"polls": 5})
        assert "exit COMPLETED" not in worker.hooks, "it stays until it is told to go"
        assert server.call("interrupt") == "COMPLETED", "what is finished is not interrupted"
        thread.join(PATIENCE_S)
    assert worker.polls == 5
    assert worker.hooks[-1] == "exit COMPLETED"


def test_an_interrupt_is_answered_before_the_loop_ends(server: QueueServer) -> None:
    worker = CountingWorker(server)
    with running(worker) as thread:
        server.call("configure", config={})
        server.call("start")
        assert server.call("interrupt") == "INTERRUPTED"
        thread.join(PATIENCE_S)
    assert worker.status is INTERRUPTED
    assert worker.hooks[-1] == "exit INTERRUPTED"


def test_requests_behind_an_exit_meet_the_final_status(server: QueueServer) -> None:
    worker = CountingWorker(server)
    replies = [server.send(command) for command in ("exit", "exit", "start")]
    worker.run()
    assert [reply.get_nowait() for reply in replies[:2]] == ["COMPLETED", "COMPLETED"]
    refused = replies[2].get_nowait()
    assert isinstance(refused, InvalidTransitionError)
    assert worker.hooks == ["exit COMPLETED"]


def test_request_exit_interrupts_also_an_idle_worker(server: QueueServer) -> None:
    worker = CountingWorker(server)
    with running(worker):
        pass
    assert worker.status is INTERRUPTED


def test_an_orphan_ends_itself(server: QueueServer) -> None:
    worker = CountingWorker(server, orphan_grace_s=0.05)
    worker.run()
    assert worker.status is INTERRUPTED
    assert worker.hooks == ["exit INTERRUPTED"]


def test_requests_keep_a_worker_from_being_an_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    script = [(1.5, 1)] * 5 + [(0.9, 0)] * 9  # what each wait for requests takes, and how many came

    class ScriptedServer(QueueServer):
        def handle_requests(self, max_count: int | None = None, timeout: float = 0.0) -> int:
            nonlocal now
            took, handled = script.pop(0)
            now += took
            return handled

    monkeypatch.setattr(worker_base, "time", SimpleNamespace(monotonic=lambda: now))
    worker = CountingWorker(ScriptedServer(), orphan_grace_s=2.0)
    worker.run()
    assert worker.status is INTERRUPTED
    assert len(script) == 5, "the fourth wait in vain sees that more than 2 s have gone by"


@pytest.mark.parametrize("hook", ["configure", "start", "poll", "pause", "reconfigure", "exit"])
def test_a_failing_hook_makes_an_error_and_still_releases_everything(server: QueueServer, hook: str) -> None:
    worker = CountingWorker(server, fail_in=hook)
    server.send("configure", config={})
    server.send("start")
    if hook != "poll":
        server.send("reconfigure", limit=-1)
        server.send("pause")
        server.send("exit")
    with pytest.raises(WorkerError, match=f"counter/0 failed: RuntimeError: {hook}") as caught:
        worker.run()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert worker.status is server.said[-1] is ERROR
    assert worker.hooks.count("exit ERROR") + worker.hooks.count("exit COMPLETED") == 1
    assert f"{hook}" in worker.last_error.splitlines()[-1]
    assert "Traceback" in worker.last_error
    assert server.report.error == worker.last_error


def test_the_caller_of_a_failing_hook_gets_its_exception(server: QueueServer) -> None:
    worker = CountingWorker(server, fail_in="configure")
    with running(worker), pytest.raises(RuntimeError, match="configure was made to fail"):
        server.call("configure", config={})
    assert worker.status is ERROR


@pytest.mark.parametrize(
    ("error", "for_good"), [(ConfigError("limit=-1: must be >= 0"), True), (ValueError("limit"), False)]
)
def test_wrong_settings_are_told_from_other_failures(
    server: QueueServer, error: Exception, for_good: bool
) -> None:
    class Refusing(CountingWorker):
        def _configure(self, config: dict[str, Any]) -> None:
            raise error

    worker = Refusing(server)
    with running(worker), pytest.raises(type(error)):
        server.call("configure", config={})
    assert worker.status is ERROR
    assert server.report.fails_for_good is for_good


def test_a_failing_exit_hook_does_not_hide_the_first_error(
    server: QueueServer, caplog: pytest.LogCaptureFixture
) -> None:
    worker = CountingWorker(server, fail_in="poll,exit")
    server.send("configure", config={})
    server.send("start")
    with pytest.raises(WorkerError, match="poll was made to fail"):
        worker.run()
    assert "poll was made to fail" in worker.last_error
    assert "the exit hook failed too" in caplog.text
    assert worker.status is ERROR


@pytest.mark.parametrize(
    ("command", "kwargs", "error", "message"),
    [
        ("start", {}, InvalidTransitionError, "configure it first"),
        ("reconfigure", {"limit": 1}, InvalidTransitionError, "configure it first"),
        ("pause", {}, InvalidTransitionError, "fitting: configure, reconfigure, start, exit"),
    ],
)
def test_commands_out_of_order_are_refused(
    server: QueueServer, command: str, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    worker = CountingWorker(server)
    with running(worker):
        with pytest.raises(error, match=message):
            server.call(command, **kwargs)
        assert server.call("ping") == "READY"


def test_configure_may_be_repeated_but_not_changed(server: QueueServer) -> None:
    worker = CountingWorker(server)
    with running(worker):
        config = {"seed": 7, "nested": {"names": ["actor/0"], "rate": 0.5}}
        assert server.call("configure", config=config) == "READY"
        server.call("start")
        assert server.call("configure", config=dict(config)) == "RUNNING"
        with pytest.raises(WorkerError, match="use reconfigure"):
            server.call("configure", config={**config, "seed": 8})
        assert server.call("ping") == "RUNNING"
    assert worker.hooks.count("configure") == 1


def test_a_refused_reconfiguration_harms_nothing(server: QueueServer) -> None:
    class Picky(CountingWorker):
        def _reconfigure(self, *, limit: int) -> None:
            if limit < 0:
                raise ConfigError(f"limit={limit} must be >= 0")
            super()._reconfigure(limit=limit)

    worker = Picky(server)
    with running(worker):
        server.call("configure", config={})
        with pytest.raises(ConfigError, match="must be >= 0"):
            server.call("reconfigure", limit=-1)
        with pytest.raises(BadRequestError, match="limit"):
            server.call("reconfigure", limits=3)
        assert server.call("reconfigure", limit=10**9) == "READY"
    assert worker.status is INTERRUPTED


def test_a_running_worker_with_nothing_to_do_looks_again_soon_but_does_not_spin(server: QueueServer) -> None:
    worker = CountingWorker(server)
    assert worker._wait_s(0.0) == worker._wait_s(100.0) == pytest.approx(0.1)
    worker._status = RUNNING
    assert worker._wait_s(0.0) == 0.0
    assert worker._wait_s(0.001) == pytest.approx(0.001)
    assert worker._wait_s(0.1) == pytest.approx(0.01)
    assert worker._wait_s(10.0) == pytest.approx(0.02)


def test_metrics_become_plain_values(server: QueueServer) -> None:
    numpy = pytest.importorskip("numpy")

    class Measured(CountingWorker):
        def _metrics(self) -> dict[str, Any]:
            return {"count": numpy.int64(3), "rate": numpy.float32(0.5), "word": "fine", "flag": True}

    worker = Measured(server)
    with running(worker):
        server.call("ping")
        while not (metrics := server.call("status")["metrics"]):
            pass
    assert metrics == {"count": 3, "rate": 0.5, "word": "fine", "flag": 1}
    assert {type(value) for value in metrics.values()} == {int, float, str}


def test_a_metric_that_is_no_number_is_an_error(server: QueueServer) -> None:
    class Odd(CountingWorker):
        def _metrics(self) -> dict[str, Any]:
            return {"odd": [1, 2]}

    worker = Odd(server)
    with pytest.raises(WorkerError, match="TypeError"):
        worker.run()
    assert worker.status is ERROR


def test_a_command_of_ones_own_is_one_line(server: QueueServer) -> None:
    class Greeter(Worker):
        def __init__(self, server: QueueServer) -> None:
            super().__init__(server)
            server.register_handler("greet", lambda name: f"hello {name}")
            server.register_handler("fail", lambda: 1 // 0)

        def _configure(self, config: dict[str, Any]) -> None:
            pass

        def _poll(self) -> PollResult:
            return PollResult(idle=True)

    with running(Greeter(server)):
        assert server.call("greet", name="controller") == "hello controller"
        with pytest.raises(ZeroDivisionError):
            server.call("fail")
        assert server.call("ping") == "READY"
        with pytest.raises(InvalidTransitionError):
            server.call("reconfigure", lr=1)
        server.call("configure", config={})
        with pytest.raises(ConfigError, match="nothing to reconfigure"):
            server.call("reconfigure", lr=1)
