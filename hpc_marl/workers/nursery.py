"""Nursery: a process that has imported what workers need, and forks one for each worker that is launched.

    host --fork--> nursery, imports, waits --fork--> actor/3
      `------- launch, signal (a socket pair) -------> |
      <------- pids, exit codes ---------------------- '

Importing takes a worker longer than all else until its first sample, and every worker imports the same; here it is done
once for all, and what was imported is in memory once. A nursery is forked while its host has one thread and no ZeroMQ
context, and has never more itself: nothing that fork cannot copy is there to be copied. A worker that comes of it is as
fresh as one that was started as a program: session, descriptors, environment, random numbers, command line.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_marl.base.early_host import THREAD_VARIABLES, Orders
from hpc_marl.base.network import process_start_ticks
from hpc_marl.workers.process_identity import (
    become,
    die_with_parent,
    move_output,
    replace_environment,
    show_command_line,
)

_LIGHT_MODULES = (
    "hpc_marl.workers.actor",
    "hpc_marl.workers.evaluator",
    "hpc_marl.envs.adapters",
    "hpc_marl.policies.numpy_actor",
)
"""What actors and evaluators import; no torch."""
_TORCH_MODULES = ("hpc_marl.workers.trainer", "torch", "hpc_marl.algorithms.ppo")
"""What trainers import. Torch takes seconds, so it is begun before anybody asks for a trainer."""
_POLICY_MODULES = {"policy": ("hpc_marl.workers.policy", "hpc_marl.policies.torch_actor")}
"""What policy workers import too, where there are any: no trainer has to wait for it."""
_TORCH_KINDS = ("trainer", "policy")
_LATE_S = 3.0
_MAX_MESSAGE_BYTES = 1 << 20
_KILL_WAIT_S = 5.0


class NurseryChild:
    """One worker's process, as its host sees it through the nursery; has the methods of `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, number: int) -> None:
        self._nursery, self.number = nursery, number
        self.pid: int | None = None
        self.start_ticks: int | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, -N where signal N ended it, None while it runs."""
        if self.returncode is None:
            self._nursery.take_reports(0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            self._nursery.send({"signal": number, "child": self.number})

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int | None:
        """Wait for its end; None where it has not ended in time."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and (left_s := deadline - time.monotonic()) > 0:
            self._nursery.take_reports(left_s)
        return self.returncode


class Nursery:
    """The host's end.

    Attributes:
        alive: whether it can launch workers; one that has died is not replaced.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._children: dict[int, NurseryChild] = {}
        self._num_launched = 0
        self.alive = True

    def launch(
        self, arguments: Sequence[str], environment: Mapping[str, str], log_file: Path
    ) -> NurseryChild:
        """Have a worker's process started; returns at once.

        Args:
            arguments: of `python -m hpc_marl.workers`, without --parent.
            environment: changes to the host's.
            log_file: gets its output.
        """
        self._num_launched += 1
        child = self._children[self._num_launched] = NurseryChild(self, self._num_launched)
        self.send(
            {
                "child": child.number,
                "arguments": list(arguments),
                "environment": dict(environment),
                "log_file": str(log_file),
            }
        )
        return child

    def settle(self, orders: Orders) -> None:
        """Have its workers come of a host that has become what these orders say."""
        self.send({"settle": orders.encode().decode()})

    def send(self, message: Mapping[str, Any]) -> None:
        """Tell the nursery something."""
        try:
            self._connection.send(json.dumps(message).encode())
        except OSError:
            self._bury()

    def take_reports(self, timeout_s: float) -> None:
        """Take in what the nursery says, after waiting for it for up to `timeout_s` seconds."""
        while self.alive and select.select([self._connection], [], [], timeout_s)[0]:
            try:
                content = self._connection.recv(_MAX_MESSAGE_BYTES)
            except OSError:
                content = b""
            if not content:
                self._bury()
                return
            self._take(json.loads(content))
            timeout_s = 0.0

    def close(self) -> None:
        """End it; workers that still run get SIGTERM as when their host dies."""
        self.alive = False
        self._connection.close()

    def _take(self, report: Mapping[str, int]) -> None:
        child = self._children[report["child"]]
        if "pid" in report:
            child.pid, child.start_ticks = report["pid"], report["start_ticks"]
        else:
            child.returncode = report["code"]
            del self._children[child.number]

    def _bury(self) -> None:
        """The nursery has died, which nobody asked for: its children, who were told to end, count as killed."""
        self.alive = False
        for child in self._children.values():
            if child.pid is not None and process_start_ticks(child.pid) == child.start_ticks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            child.returncode = -signal.SIGKILL
        self._children.clear()


@dataclass(frozen=True)
class Nurseries:
    """The nurseries of one host.

    Attributes:
        light: without torch.
        heavy: with torch; None where no trainers and policy workers are expected.
    """

    light: Nursery
    heavy: Nursery | None = None

    def of(self, kind: str, num_threads: int) -> Nursery | None:
        """Return the nursery that a worker can come of; None: it must be started as a program.

        Numeric libraries count their threads once, when they are loaded, and a nursery loads them for one thread; only
        the trainer sets its number by itself.
        """
        chosen = self.heavy if kind in _TORCH_KINDS else self.light
        if chosen is None or not chosen.alive or (num_threads != 1 and kind != "trainer"):
            return None
        return chosen

    def close(self) -> None:
        """End them; workers that still run get SIGTERM."""
        for nursery in (self.light, self.heavy):
            if nursery is not None:
                nursery.close()


def start_nurseries(
    run_directory: Path, has_torch_workers: bool, heavy: Nursery | None = None
) -> Nurseries | list[str]:
    """Fork a host's nurseries. The process must have one thread.

    Args:
        run_directory: shown in their command lines, by which people find the processes of a run.
        has_torch_workers: whether trainers or policy workers are expected.
        heavy: the nursery for these, where it was started already.

    Returns:
        the nurseries in this process; in every worker's new process, the arguments that it was launched with.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    shown = ["nursery", "--run-dir", str(run_directory)]
    if heavy is None and has_torch_workers:
        found = start_heavy_nursery(shown)
        if isinstance(found, list):
            return found
        heavy = found
    # Where a trainer starts first, its imports must not be held up by those for the evaluator, which comes last.
    others, delay_s = ([], 0.0) if heavy is None else ([heavy], _LATE_S)
    light = start_nursery(_LIGHT_MODULES, shown, delay_s, others)
    return light if isinstance(light, list) else Nurseries(light, heavy)


def start_heavy_nursery(shown: Sequence[str]) -> Nursery | list[str]:
    """Fork the nursery of those who need torch; see `start_nursery`."""
    return start_nursery(_TORCH_MODULES, shown, of_kind=_POLICY_MODULES)


def start_nursery(
    modules: Iterable[str],
    shown: Sequence[str],
    delay_s: float = 0.0,
    others: Iterable[Nursery] = (),
    of_kind: Mapping[str, Sequence[str]] | None = None,
) -> Nursery | list[str]:
    """Fork a nursery. The process must have one thread.

    Args:
        modules: what to import beforehand; one that cannot be imported is left to the workers.
        shown: its command line.
        delay_s: not before so many seconds, unless a worker is launched earlier.
        others: nurseries of this process.
        of_kind: what to import before the first worker of a kind is forked.

    Returns:
        the nursery in this process; in every worker's new process, the arguments that it was launched with.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host = os.getpid()
    if os.fork():
        theirs.close()
        return Nursery(ours)
    ours.close()
    for other in others:
        other.close()  # our copy: it must see when the host's own is closed
    # A signal to the host's process group is the host's to act on: it ends us by closing the connection.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if not die_with_parent(host, signal.SIGKILL):
        os._exit(0)
    show_command_line(shown)  # not taken for a second host
    return _Forking(theirs).serve(modules, delay_s, dict(of_kind or {}))


class _Forking:
    """The nursery's own side."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pids: dict[int, int] = {}  # child's number -> pid, until it has been waited for
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self, modules: Iterable[str], delay_s: float, of_kind: dict[str, Sequence[str]]) -> list[str]:
        """Fork whoever is asked for; returns in their processes only."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        if delay_s:
            select.select([self._connection], [], [], delay_s)
        _import_all(modules)
        while True:
            sources: list[Any] = [self._connection, self._woken]
            ready, _, _ = select.select(sources, [], [])
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._connection not in ready:
                continue
            try:
                content = self._connection.recv(_MAX_MESSAGE_BYTES)
            except ConnectionResetError:
                content = b""
            if not content:
                os._exit(0)
            message = json.loads(content)
            if "settle" in message:
                _settle(Orders.decode(message["settle"].encode()))
            elif "signal" in message:
                self._signal(message["child"], message["signal"])
            else:
                if modules_of_kind := of_kind.pop(message["arguments"][0].partition("/")[0], ()):
                    _import_all(modules_of_kind)
                if (arguments := self._fork(message)) is not None:
                    return arguments

    def _fork(self, message: Mapping[str, Any]) -> list[str] | None:
        """Fork; None in the nursery, arguments in the new process."""
        nursery = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            sys.stderr.write(f"{message['arguments'][0]} cannot be forked: {error}\n")
            self._report(child=message["child"], code=error.errno or errno.EAGAIN)
            return None
        if pid:
            self._pids[message["child"]] = pid
            self._report(child=message["child"], pid=pid, start_ticks=process_start_ticks(pid) or 0)
            return None
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in (self._woken, self._waker):
            os.close(descriptor)
        self._connection.close()
        arguments = [*message["arguments"], "--parent", str(nursery)]
        become(arguments, message["environment"], Path(message["log_file"]))
        return arguments

    def _signal(self, child: int, number: int) -> None:
        pid = self._pids.get(child)
        if pid is None:
            return
        os.kill(pid, number)  # not waited for yet, so the pid is still its own
        if number == signal.SIGKILL:
            deadline = time.monotonic() + _KILL_WAIT_S
            while child in self._pids and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.001)

    def _reap(self) -> None:
        for child, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[child]
                self._report(child=child, code=os.waitstatus_to_exitcode(status))

    def _report(self, **report: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # read as an end by `serve`
            self._connection.send(json.dumps(report).encode())


def _settle(orders: Orders | None) -> None:
    if orders is not None:
        replace_environment(orders.environment)
        move_output(orders.log_file, with_earlier=True)
        show_command_line(["nursery", *orders.arguments[1:3]])  # its run


def _import_all(modules: Iterable[str]) -> None:
    gc.disable()  # it would look through all that is imported again and again, and find little
    for module in modules:
        # Whoever needs it will say what is wrong.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()  # what a collector does not touch stays shared
    gc.enable()
