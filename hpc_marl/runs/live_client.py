"""The controller of a run, as a login shell talks to it: found by the run's files, asked by RPC, never listening.

with live_controller(directory) as controller:
    snapshot = controller.status()
    controller.request("scale", actors=16)
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpc_marl.base import names
from hpc_marl.base.launch_record import LaunchRecord, read_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.panel import ZmqWorkerControl
from hpc_marl.errors import (
    ConfigError,
    NameResolveError,
    NoControllerError,
    RemoteError,
    RpcError,
    RpcTimeoutError,
    SecurityError,
    StalePeerError,
)
from hpc_marl.trials.trial_files import queue_jobs, read_verdict

_TIMEOUT_S = 5.0
# Long enough for one controller to hand over to the next.
_WAIT_FOR_NAME_S = 1.0


class LiveController:
    """A connection to whoever drives a run; goes on with the next controller where one takes over.

    Made by `live_controller`. For one thread.
    """

    def __init__(
        self, panel: ZmqWorkerControl, directory: RunDirectory, context: RunContext, timeout_s: float
    ) -> None:
        self._panel, self._directory, self._context = panel, directory, context
        self._timeout_s = timeout_s

    def status(self) -> dict[str, Any]:
        """Return the snapshot of the run. Raises as `request` does."""
        snapshot: dict[str, Any] = self.request("status")
        return snapshot

    def request(self, command: str, /, timeout: float | None = None, **kwargs: Any) -> Any:
        """Have the controller run a command and return its answer.

        Args:
            command: status, pause, resume, scale, checkpoint, stop, cancel or release.
            timeout: seconds to wait for the answer; None: as long as for any.
            **kwargs: of the command.

        Raises:
            NoControllerError: no answer; where the controller should be, and what to do.
            ConfigError: the controller says that an argument is out of range.
            RpcError: the controller could not do it; what it said.
        """
        timeout = self._timeout_s if timeout is None else timeout
        try:
            try:
                return self._panel.request(names.CONTROLLER, command, timeout=timeout, **kwargs)
            except StalePeerError:
                # Another one has taken over and is connected now. All commands may be given twice.
                return self._panel.request(names.CONTROLLER, command, timeout=timeout, **kwargs)
        except RemoteError as error:
            # Its traceback is in the controller's log; here its sentence is enough.
            if error.remote_type == ConfigError.__name__:
                raise ConfigError(str(error.args[0])) from error
            raise RpcError(f"the controller could not {command}: {error.args[0]}") from error
        except (RpcTimeoutError, StalePeerError, NameResolveError) as error:
            raise NoControllerError(self._unreachable(error)) from error

    def _unreachable(self, error: Exception) -> str:
        name, launch = _name(self._directory), read_launch_record(self._directory)
        try:
            record = self._context.lookup(_key(self._directory))
        except NameResolveError:
            record = None  # The names are removed at the end of a run.
        if record is None or read_verdict(self._directory) is not None:
            return _nobody(self._directory, launch)
        return (
            f"the controller of {name} (process {record.pid} at {', '.join(record.hosts)} port {record.port}) does "
            f"not answer {socket.gethostname()}: {error}; if it is gone, or cannot be reached from here, take over by "
            f"`hpc-marl attach {name}`"
        )


@contextmanager
def live_controller(directory: RunDirectory, *, timeout_s: float = _TIMEOUT_S) -> Iterator[LiveController]:
    """Connect to the controller of a run for the time of a `with` block.

    Args:
        directory: of the trial.
        timeout_s: how long the controller may take to answer.

    Raises:
        NoControllerError: nobody drives the run: it was never started, has ended, or goes on by itself.
        ConfigError: the directory holds no run.
        SecurityError: the run's keys cannot be trusted.
    """
    record = read_launch_record(directory)
    if not directory.auth(record.run_uuid).is_dir():
        raise NoControllerError(_nobody(directory, record))
    with _opened(directory, record) as context:
        experiment, trial = record.experiment_name, record.trial_name
        with ZmqWorkerControl(experiment, trial, context=context, timeout=timeout_s) as panel:
            try:
                panel.connect([names.CONTROLLER], timeout=min(timeout_s, _WAIT_FOR_NAME_S))
            except NameResolveError as error:
                raise NoControllerError(_nobody(directory, record)) from error
            yield LiveController(panel, directory, context, timeout_s)


def _opened(directory: RunDirectory, record: LaunchRecord) -> RunContext:
    try:
        # interface=None: this process listens nowhere, so it does not matter which interfaces a login node has.
        return RunContext.open(directory, record.run_uuid, interface=None)
    except SecurityError as error:
        if directory.auth(record.run_uuid).is_dir():
            raise
        raise NoControllerError(_nobody(directory, record)) from error  # it has ended just now


def _nobody(directory: RunDirectory, record: LaunchRecord) -> str:
    """Say why nobody drives the run, and what to do."""
    name = _name(directory)
    if (verdict := read_verdict(directory)) is not None:
        return f"no controller drives {name}: it has ended {verdict}"
    if not directory.auth(record.run_uuid).is_dir():
        return f"no controller drives {name}: its keys are gone, so it has ended, without a verdict"
    jobs = ", ".join(queue_jobs(record))
    goes_on = f"its jobs {jobs} may still run" if jobs else f"it was started on {record.host}"
    return f"no controller drives {name}: {goes_on}; take over by `hpc-marl attach {name}`"


def _name(directory: RunDirectory) -> str:
    return f"{directory.experiment_name}/{directory.trial_name}"


def _key(directory: RunDirectory) -> str:
    return names.worker(directory.experiment_name, directory.trial_name, names.CONTROLLER)
