"""`Worker`, and the two interfaces that tie it to its controller: `WorkerServer` and `WorkerControlPanel`.

    controller                         worker process
    WorkerControlPanel --request---->  WorkerServer --handler--> Worker: configure, start, pause, exit, ...
                       <--reply------                <-result--
                       <--heartbeat--  (own thread)  <-report--  Worker.run(): one poll, then the requests

One thread does a worker's work and answers its requests in turn, so a subclass needs no lock; a heartbeat
thread only reads the `WorkerReport`. Work and control meet in `run()`: `_poll()` does one bounded unit of
work while RUNNING; otherwise the worker waits *inside* `handle_requests`, so a command is answered at once.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from types import TracebackType
from typing import Any

from hpc_marl.base import serialization
from hpc_marl.control.interfaces import (
    Metrics,
    PollResult,
    Response,
    RpcFuture,
    WorkerControlPanel,
    WorkerReport,
    WorkerServer,
)
from hpc_marl.control.worker_state import Action, Event, WorkerStatus, transition
from hpc_marl.errors import ConfigError, InvalidTransitionError, WorkerError

__all__ = [
    "Metrics",
    "PollResult",
    "Response",
    "RpcFuture",
    "Worker",
    "WorkerControlPanel",
    "WorkerReport",
    "WorkerServer",
    "WorkerStatus",
]

IDLE_WAIT_S = 0.1
"""How long a worker that is not running waits for requests before it looks at its flags again."""
# A running worker that finds nothing to do looks again soon: what it waits for is late by a tenth at most.
_RUNNING_WAIT_S = (0.001, 0.02)
_RUNNING_WAIT_SHARE = 0.1
_METRICS_INTERVAL_S = 0.25

_logger = logging.getLogger(__name__)


class Worker(ABC):
    """One process of a trial, told what to do by a controller.

    A subclass says what its work is with two methods, `_configure` and `_poll`; further hooks have empty
    defaults. All of them run in the thread of `run()`. What a hook raises makes the status ERROR: `_on_exit`
    still runs, the traceback is in the log, in `last_error`, in the `status` reply and in the last heartbeat,
    and `run()` raises WorkerError.

    A command of one's own is one line in the subclass's constructor; what its handler raises goes to the
    caller and harms nothing else: `server.register_handler("checkpoint", self.checkpoint)`.

    A worker whose work is finished stays, COMPLETED, and answers requests until it is told to exit (or is
    orphaned), so that a controller that comes late still finds out.

    Example:
        >>> import threading
        >>> from hpc_marl.base import name_resolve
        >>> from hpc_marl.base.name_resolve_memory import MemoryNameResolver
        >>> from hpc_marl.control.worker_control import ZmqServer, ZmqWorkerControl
        >>> name_resolve.configure(MemoryNameResolver())
        >>> class Counter(Worker):
        ...     def _configure(self, config):
        ...         self.count, self.limit = 0, config["limit"]
        ...     def _poll(self):
        ...         self.count += 1
        ...         return PollResult(num_samples=1, completed=self.count == self.limit)
        >>> with ZmqServer("exp", "trial", "counter/0") as server:
        ...     thread = threading.Thread(target=Counter(server).run)
        ...     thread.start()
        ...     with ZmqWorkerControl("exp", "trial") as panel:
        ...         _ = panel.auto_connect(timeout=10)
        ...         print(panel.request("counter/0", "configure", config={"limit": 1000}))
        ...         print(panel.request("counter/0", "start"))
        ...         print(panel.request("counter/0", "exit"))
        ...     thread.join()
        READY
        RUNNING
        COMPLETED
        >>> name_resolve.configure(None)
    """

    def __init__(self, server: WorkerServer, *, orphan_grace_s: float | None = None) -> None:
        """Register the commands at `server`; the status is READY then.

        Args:
            server: the control channel; the caller closes it after `run()`.
            orphan_grace_s: end with INTERRUPTED when no request came for that long [s]; None: never.
        """
        self.last_error = ""
        self._server = server
        self._report = server.report
        self._orphan_grace_s = orphan_grace_s
        self._status = WorkerStatus.READY
        self._configured_with: bytes | None = None
        self._ending: WorkerStatus | None = None  # the final status, once the loop is to be left
        self._failure: Exception | None = None  # raised by a hook inside a request
        self._exit_requested = False
        self._exit_hook_called = False
        self._was_spoken_to = False
        self._hooks: dict[Action, Callable[..., None]] = {
            Action.RUN_CONFIGURE: self._configure,
            Action.RUN_RECONFIGURE: self._reconfigure,
            Action.RUN_START: self._on_start,
            Action.RUN_PAUSE: self._on_pause,
        }
        for command, handler in self._commands().items():
            server.register_handler(command, handler)
        server.set_status(self._status)

    @property
    def name(self) -> str:
        """The worker's name, as in `actor/3`."""
        return self._server.worker_name

    @property
    def status(self) -> WorkerStatus:
        """Where the worker stands."""
        return self._status

    def run(self) -> None:
        """Work and answer requests until told to end.

        Raises:
            WorkerError: a hook or a poll raised; its exception is the cause.
        """
        with ExitStack() as stack:
            stack.push(self._fail)
            ending = self._loop()
            self._run_exit_hook(ending)
            self._set_status(ending)

    def request_exit(self) -> None:
        """End with INTERRUPTED after the current poll (COMPLETED if the work was finished).

        Only sets a flag, so a signal handler may call it.
        """
        self._exit_requested = True

    @abstractmethod
    def _configure(self, config: dict[str, Any]) -> None:
        """Get ready for work; called once. `config` holds plain values."""

    @abstractmethod
    def _poll(self) -> PollResult:
        """Do one bounded unit of work; requests wait meanwhile, so keep it well below a second."""

    def _reconfigure(self, *args: Any, **kwargs: Any) -> None:
        """Change settings at run time; a subclass names the keyword arguments that it takes.

        Raises:
            ConfigError: the change is refused and the worker goes on; raise it before changing anything.
        """
        raise ConfigError(
            f"{type(self).__name__} has nothing to reconfigure, got {', '.join(sorted(kwargs))}"
        )

    def _on_start(self) -> None:  # noqa: B027 - a hook that may stay empty
        """Called before polling starts, also after a pause."""

    def _on_pause(self) -> None:  # noqa: B027 - a hook that may stay empty
        """Called when polling stops for a while."""

    def _on_exit(self, status: WorkerStatus) -> None:  # noqa: B027 - a hook that may stay empty
        """Release what the worker holds; called once, whatever the reason, which `status` says."""

    def _report_now(self) -> None:
        """Send a heartbeat with fresh metrics, without waiting for the next one to be due."""
        self._refresh_metrics()
        self._server.set_status(self._status)

    def _metrics(self) -> Metrics:
        """Return the numbers and words that heartbeats shall carry.

        Called a few times a second, also before `_configure` and once after `_on_exit`.
        """
        return {}

    def _look_around(self, silence_s: float) -> None:  # noqa: B027 - a hook that may stay empty
        """Called in every turn of the loop, whatever the status.

        Args:
            silence_s: since the last request, or since the loop began.
        """

    def _set_phase(self, phase: str) -> None:
        """Say in heartbeats what is going on, before something takes long."""
        self._report.phase = phase

    # -- the main loop ---------------------------------------------------------------------------------------

    def _loop(self) -> WorkerStatus:
        last_request = last_busy = next_metrics = time.monotonic()
        while self._ending is None:
            busy = self._turn()
            now = time.monotonic()
            last_busy = now if busy else last_busy
            if self._server.handle_requests(timeout=self._wait_s(now - last_busy)):
                last_request = time.monotonic()
                self._was_spoken_to = True
            if self._failure is not None:
                raise self._failure
            if self._exit_requested:
                self._apply(Event.INTERRUPT)
            elif self._orphan_grace_s is not None and now - last_request > self._orphan_grace_s:
                _logger.warning("%s: no request for %.1f s: ending", self.name, now - last_request)
                self._apply(Event.ORPHANED)
            self._look_around(now - last_request)
            if now >= next_metrics:
                self._refresh_metrics()
                next_metrics = now + _METRICS_INTERVAL_S
            self._report.progress += 1
        return self._ending

    def _turn(self) -> bool:
        """Poll if RUNNING; return whether there was something to do."""
        if self._status is not WorkerStatus.RUNNING:
            self._report.phase = "idle"
            return False
        self._report.phase = "poll"
        result = self._poll()
        if result.completed:
            self._refresh_metrics()
            self._apply(Event.FINISHED)
        return not result.idle

    def _wait_s(self, idle_s: float) -> float:
        """Return how long to wait for requests, given how long there has been nothing to do."""
        if self._status is not WorkerStatus.RUNNING:
            return IDLE_WAIT_S
        shortest, longest = _RUNNING_WAIT_S
        return min(max(shortest, idle_s * _RUNNING_WAIT_SHARE), longest) if idle_s else 0.0

    def _refresh_metrics(self) -> None:
        self._report.take_metrics(self._metrics())

    def _run_exit_hook(self, status: WorkerStatus) -> None:
        self._exit_hook_called = True
        self._report.phase = "exit"
        self._on_exit(status)
        self._refresh_metrics()  # the final counts, for the last heartbeat

    def _fail(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn what escapes from `run` into the status ERROR and a WorkerError; KeyboardInterrupt passes by."""
        if not isinstance(error, Exception):
            return
        status, _ = transition(self._status, Event.FAILED)
        self._report.fail(error)
        self.last_error = self._report.error
        _logger.error("%s failed", self.name, exc_info=error)
        if not self._exit_hook_called:
            with ExitStack() as stack:
                stack.push(self._log_second_failure)
                self._run_exit_hook(status)
        self._set_status(status)
        raise WorkerError(f"worker {self.name} failed: {type(error).__name__}: {error}") from error

    def _log_second_failure(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Log what the exit hook raises after another failure; that one is what counts."""
        if not isinstance(error, Exception):
            return False
        _logger.error("%s: the exit hook failed too", self.name, exc_info=error)
        return True

    def _set_status(self, status: WorkerStatus) -> None:
        self._server.set_status(status)
        self._status = status

    # -- the commands ----------------------------------------------------------------------------------------

    def _commands(self) -> dict[str, Callable[..., Any]]:
        return {
            "configure": self._handle_configure,
            "reconfigure": self._reconfigure_handler(),
            "start": self._handle_start,
            "pause": lambda: self._apply(Event.PAUSE),
            "exit": lambda: self._apply(Event.EXIT),
            "interrupt": lambda: self._apply(Event.INTERRUPT),
            "ping": lambda: self._status.value,
            "status": self._handle_status,
        }

    def _handle_configure(self, config: dict[str, Any]) -> str:
        """Configure once; the same config again is fine, so that a controller may repeat itself."""
        encoded = serialization.encode(config)
        if encoded == self._configured_with:
            return self._current.value
        if self._configured_with is not None:
            raise WorkerError(f"{self.name} is configured already, with another config; use reconfigure")
        answer = self._apply(Event.CONFIGURE, config)
        self._configured_with = encoded
        return answer

    def _reconfigure_handler(self) -> Callable[..., str]:
        # Wrapped, so that the server sees and checks the arguments that the subclass takes.
        @wraps(self._reconfigure)
        def handle(**kwargs: Any) -> str:
            self._require_configured("reconfigure")
            return self._apply(Event.RECONFIGURE, **kwargs)

        return handle

    def _handle_start(self) -> str:
        self._require_configured("start")
        return self._apply(Event.START)

    def _handle_status(self) -> dict[str, Any]:
        return {
            "worker_name": self.name,
            "status": self._status.value,
            "configured": self._configured_with is not None,
            "phase": self._report.phase,
            "progress": self._report.progress,
            "metrics": dict(self._report.metrics),
            "error": self._report.error,
        }

    @property
    def _current(self) -> WorkerStatus:
        """The status that commands meet: the final one as soon as it is known."""
        if self._failure is not None:
            return WorkerStatus.ERROR
        return self._ending or self._status

    def _require_configured(self, command: str) -> None:
        if self._configured_with is None:
            raise InvalidTransitionError(
                f"{command!r} does not fit: {self.name} has no config yet; configure it first"
            )

    def _apply(self, event: Event, *args: Any, **kwargs: Any) -> str:
        """Carry out what the state machine says about `event`; return the status it leads to.

        The end of the loop is only noted here, so that the reply to the command goes out first.
        """
        status, actions = transition(self._current, event)
        for action in actions:
            if action is Action.END_LOOP:
                self._ending = status
                return status.value
            self._run_hook(action, *args, **kwargs)
        if status is not self._current:
            self._refresh_metrics()  # the heartbeat that says it also says how far the work is
            self._set_status(status)
        return status.value

    def _run_hook(self, action: Action, *args: Any, **kwargs: Any) -> None:
        self._report.phase = action.name.removeprefix("RUN_").lower()
        with ExitStack() as stack:
            stack.push(partial(self._note_failure, action))
            self._hooks[action](*args, **kwargs)

    def _note_failure(
        self,
        action: Action,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remember what a hook raised: the caller of the command gets it, and the loop ends with it."""
        refused = action is Action.RUN_RECONFIGURE and isinstance(error, ConfigError)
        if isinstance(error, Exception) and not refused:
            self._failure = error
            self._report.fail(error)
