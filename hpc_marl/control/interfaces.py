"""What a worker and its controller agree on: the two ends of the control channel, and what travels between.

`worker_base` re-exports all of it; it lies here so that neither end has to import the other.
"""

from __future__ import annotations

import numbers
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ConfigError, HpcMarlError

_MAX_ERROR_CHARACTERS = 8000

Metrics = Mapping[str, "float | int | str"]


@dataclass(frozen=True)
class PollResult:
    """What one `_poll()` did.

    Attributes:
        num_samples: samples it handled, in the worker's own unit.
        num_batches: batches it handled.
        idle: there was nothing to do; the worker may wait for requests for a moment.
        completed: the worker's work is finished; it is COMPLETED and polls no more.
    """

    num_samples: int = 0
    num_batches: int = 0
    idle: bool = False
    completed: bool = False


@dataclass
class WorkerReport:
    """What a worker says of itself beside its status.

    The worker's thread writes it and the heartbeat thread reads it without a lock: every field is replaced as
    a whole, never changed in place.

    Attributes:
        phase: what it is doing: idle, poll, configure, start, pause, exit, or a subclass's own word.
        progress: finished turns of the main loop; standing still while heartbeats arrive means stuck.
        metrics: the subclass's numbers and words.
        error: traceback of what made it fail, "" while nothing did.
        fails_for_good: another life with the same settings would fail in the same way.
    """

    phase: str = "starting"
    progress: int = 0
    metrics: Metrics = field(default_factory=dict)
    error: str = ""
    fails_for_good: bool = False

    def fail(self, error: BaseException) -> None:
        """Say what made the worker fail; wrong settings are as wrong in the next life."""
        self.fails_for_good = isinstance(error, ConfigError)
        self.error = "".join(traceback.format_exception(error))[-_MAX_ERROR_CHARACTERS:]

    def take_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Set `metrics` as values that any codec knows; numpy's scalars are converted.

        Raises:
            TypeError: a value is neither a number nor a string.
        """
        plain: dict[str, float | int | str] = {}
        for name, value in metrics.items():
            if isinstance(value, str):
                plain[name] = str(value)
            elif isinstance(value, numbers.Integral):
                plain[name] = int(value)
            else:
                plain[name] = float(value)
        self.metrics = plain


class Heartbeat(msgspec.Struct, frozen=True):
    """The newest that was heard of one worker. Ages are by the reader's clock; no two clocks are compared.

    Attributes:
        worker_name: whose.
        incarnation: which life of it.
        status: READY until the first heartbeat arrives.
        phase: see WorkerReport.
        progress: see WorkerReport.
        metrics: see WorkerReport.
        error: see WorkerReport.
        age_s: since it arrived, or since the worker was connected while none has.
        progress_age_s: since `progress` or `phase` last changed; large while `age_s` is small means stuck.
        fails_for_good: see WorkerReport.
    """

    worker_name: str
    incarnation: str
    status: WorkerStatus
    phase: str
    progress: int
    metrics: Metrics
    error: str
    age_s: float
    progress_age_s: float
    fails_for_good: bool = False


@dataclass(frozen=True)
class Response:
    """What one worker answered to a group request.

    Attributes:
        worker_name: who was asked.
        result: what the handler returned; None where there is an error.
        error: why there is no result, of a type that says it (see `WorkerControlPanel.request`), else None.
        timed_out: the error is that no answer came in time; the command may still be carried out.
    """

    worker_name: str
    result: Any = None
    error: HpcMarlError | None = None
    timed_out: bool = False


class WorkerServer(ABC):
    """The worker's end of the control channel.

    Attributes:
        worker_name: the name under which controllers find the worker, as in `actor/3`.
        report: what the worker says of itself; the worker writes it.
    """

    def __init__(self, worker_name: str) -> None:
        self.worker_name = worker_name
        self.report = WorkerReport()

    @abstractmethod
    def register_handler(self, command: str, handler: Callable[..., Any]) -> None:
        """Answer `command` with what `handler(**kwargs)` returns; an exception of it goes to the caller."""

    @abstractmethod
    def handle_requests(self, max_count: int | None = None, timeout: float = 0.0) -> int:
        """Answer the requests that are there.

        Args:
            max_count: at most that many, None for all.
            timeout: wait up to that long [s] for the first one.

        Returns:
            how many were answered.
        """

    @abstractmethod
    def set_status(self, status: WorkerStatus) -> None:
        """Let controllers know at once where the worker stands now."""

    @abstractmethod
    def close(self) -> None:
        """Say the last word, take the name back and release the sockets."""


class RpcFuture(Protocol):
    """An answer under way."""

    def done(self) -> bool:
        """Return whether `result` would return or raise at once."""

    def result(self, timeout: float | None = None) -> Any:
        """Return what the handler returned.

        Args:
            timeout: longest wait [s]; None: until the request's own deadline.

        Raises:
            RpcTimeoutError: no answer yet; once the request's own deadline is over there will be none.
            HpcMarlError: see `WorkerControlPanel.request`.
        """


class WorkerControlPanel(ABC):
    """The controller's end: all workers of one trial, by name. For one thread only."""

    @property
    @abstractmethod
    def connected(self) -> list[str]:
        """The names of the connected workers, sorted."""

    @abstractmethod
    def connect(self, worker_names: Iterable[str], timeout: float = 60.0) -> list[str]:
        """Connect to these workers, waiting for those that are not registered yet; return their names.

        Raises:
            NameWaitTimeoutError: one did not register within `timeout` seconds.
        """

    @abstractmethod
    def auto_connect(self, timeout: float = 60.0) -> list[str]:
        """Connect to every worker registered now; return the names of all that are connected.

        Raises:
            NameWaitTimeoutError: not one worker registered within `timeout` seconds.
        """

    def autoconnect(self, timeout: float = 60.0) -> list[str]:
        """Do as `auto_connect`."""
        return self.auto_connect(timeout)

    @abstractmethod
    def refresh(self) -> dict[str, str]:
        """Look who is registered now, connect to new workers and new incarnations, without waiting.

        Returns:
            the incarnation of every connected worker by name.
        """

    @property
    def look_interval_s(self) -> float:
        """How soon it is worth to `refresh` again [s] while somebody is awaited."""
        return 0.2

    @abstractmethod
    def disconnect(self, worker_name: str) -> None:
        """Give this incarnation of a worker up for good; only a new one is connected to again.

        Requests under way to it fail. Nothing happens if the worker is not connected.
        """

    @abstractmethod
    def heartbeats(self) -> dict[str, Heartbeat]:
        """Return the newest heartbeat of every connected worker, without waiting."""

    @abstractmethod
    def request(self, worker_name: str, command: str, /, timeout: float | None = None, **kwargs: Any) -> Any:
        """Have one worker run `command(**kwargs)` and return the result.

        Args:
            worker_name: a connected worker.
            command: what it registered a handler for.
            timeout: deadline [s]; None: the panel's own.
            **kwargs: for the handler. One named `timeout` can travel by `group_request(worker_kwargs=...)`.

        Raises:
            RpcTimeoutError: no answer in time; the message says how far the connection got.
            StalePeerError: the worker was replaced meanwhile; the panel is connected to the new one now.
            UnknownCommandError: it has no such handler.
            BadRequestError: the handler does not take these arguments.
            RemoteError: the handler raised; carries the remote traceback.
            MessageTooLargeError: request or reply is larger than allowed.
            SecurityError: what listens there is not the worker.
            RpcError: the worker is not connected, or was disconnected meanwhile.
        """

    @abstractmethod
    def async_request(
        self, worker_name: str, command: str, /, timeout: float | None = None, **kwargs: Any
    ) -> RpcFuture:
        """Begin a request and return at once; the future tells what became of it.

        It goes out as soon as the connection is up; that is looked after whenever the future is asked or
        `heartbeats` is called.
        """

    @abstractmethod
    def group_request(
        self,
        command: str,
        /,
        worker_names: Iterable[str] | None = None,
        worker_regex: str | None = None,
        worker_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Response]:
        """Have several workers run `command` at the same time; return one response each, sorted by name.

        Never raises for what goes wrong with a worker, be it dead or not connected: its response says it.

        Args:
            command: what they registered a handler for.
            worker_names: who is asked; None: those named in `worker_kwargs`, or else all that are connected.
            worker_regex: of these, only the ones whose whole name matches.
            worker_kwargs: further arguments by worker name; they win over `kwargs`.
            timeout: deadline [s] of all of them together; None: the panel's own.
            **kwargs: arguments for every worker.
        """

    @abstractmethod
    def close(self) -> None:
        """Release all sockets; requests under way fail."""
