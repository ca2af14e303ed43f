"""A control channel without sockets, and workers whose work is a counter."""

from __future__ import annotations

import inspect
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import BadRequestError, WorkerError

PATIENCE_S = 30.0
T = TypeVar("T")


class QueueServer(WorkerServer):
    """Takes commands from a queue; the reply to each is put into its own queue."""

    def __init__(self, worker_name: str = "counter/0") -> None:
        super().__init__(worker_name)
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.said: list[WorkerStatus] = []
        self._requests: queue.Queue[tuple[str, dict[str, Any], queue.Queue[Any]]] = queue.Queue()

    def register_handler(self, command: str, handler: Callable[..., Any]) -> None:
        self.handlers[command] = handler

    def handle_requests(self, max_count: int | None = None, timeout: float = 0.0) -> int:
        handled = 0
        while True:
            try:
                command, kwargs, reply = self._requests.get(block=timeout > 0, timeout=timeout or None)
            except queue.Empty:
                return handled
            timeout = 0.0
            handled += 1
            reply.put(self._run(self.handlers[command], kwargs))

    def _run(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        try:
            inspect.signature(handler).bind(**kwargs)
        except TypeError as error:
            return BadRequestError(str(error))
        try:
            return handler(**kwargs)
        except Exception as error:  # noqa: BLE001 - as at the other RPC boundary
            return error

    def set_status(self, status: WorkerStatus) -> None:
        self.said.append(status)

    def close(self) -> None:
        pass

    def send(self, command: str, **kwargs: Any) -> queue.Queue[Any]:
        """Put a command into the queue; its reply will be in the returned one."""
        reply: queue.Queue[Any] = queue.Queue()
        self._requests.put((command, kwargs, reply))
        return reply

    def call(self, command: str, **kwargs: Any) -> Any:
        """Have the worker's thread run a command; return or raise what came of it."""
        answer = self.send(command, **kwargs).get(timeout=PATIENCE_S)
        if isinstance(answer, Exception):
            raise answer
        return answer


class CountingWorker(Worker):
    """Counts its polls and writes down which hooks ran; whatever `fail_in` names raises."""

    def __init__(self, server: WorkerServer, *, fail_in: str = "", **kwargs: Any) -> None:
        self.hooks: list[str] = []
        self.polls = 0
        self.limit = 0
        self.polled = threading.Event()
        self._fail_in = fail_in
        super().__init__(server, **kwargs)

    def _note(self, hook: str) -> None:
        self.hooks.append(hook)
        if hook.partition(" ")[0] in self._fail_in.split(","):
            raise RuntimeError(f"{hook} was made to fail")

    def _configure(self, config: dict[str, Any]) -> None:
        self._note("configure")
        self.limit = config.get("limit", 0)

    def _reconfigure(self, *, limit: int) -> None:
        self._note("reconfigure")
        self.limit = limit

    def _on_start(self) -> None:
        self._note("start")

    def _on_pause(self) -> None:
        self._note("pause")

    def _on_exit(self, status: WorkerStatus) -> None:
        self._note(f"exit {status.value}")

    def _metrics(self) -> dict[str, float | int | str]:
        return {"polls": self.polls}

    def _poll(self) -> PollResult:
        if "poll" in self._fail_in.split(","):
            raise RuntimeError("poll was made to fail")
        self.polls += 1
        self.polled.set()
        completed = self.polls == self.limit
        return PollResult(num_samples=1, idle=self.polls > 3, completed=completed)


@contextmanager
def running(worker: Worker) -> Iterator[threading.Thread]:
    """Run a worker in a thread; at the end ask it to exit and wait for the thread."""

    def run() -> None:
        with suppress(WorkerError):
            worker.run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        worker.request_exit()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def eventually(look: Callable[[], T], condition: Callable[[T], bool]) -> T:
    """Look again and again until what is seen fulfils `condition`, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition(seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r}"
        time.sleep(0.002)
    return seen
