"""The driver's side of `name_node.py`: name resolvers that live on nodes of a cluster."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from hpc_marl import errors
from hpc_marl.base.name_resolve import NameResolver

CALL_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Answer:
    """The result of a call on a node, and when it arrived by the driver's monotonic clock."""

    result: Any
    arrived_at: float


class RemoteNode:
    """One process on a node.

    Args:
        command: starts `name_node.py` there, connected by stdin and stdout.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._numbers = itertools.count()
        self._answers: dict[int, Future[Answer]] = {}
        self._callbacks: dict[int, Callable[[str], object]] = {}
        self._write_lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="remote-node", daemon=True)
        self._reader.start()

    def start(
        self, call: str, *arguments: object, target: int | None = None, **keywords: object
    ) -> Future[Answer]:
        """Begin a call there."""
        number = next(self._numbers)
        answer = self._answers[number] = Future()
        self._send(id=number, target=target, call=call, arguments=arguments, keywords=keywords)
        return answer

    def call(self, call: str, *arguments: object, target: int | None = None, **keywords: object) -> Any:
        """Make a call there and return its result."""
        return self.start(call, *arguments, target=target, **keywords).result(CALL_TIMEOUT_S).result

    def watch(
        self, resolver: int, names: Sequence[str], callback: Callable[[str], object], poll_s: float
    ) -> int:
        """Watch names there with a callback here; returns the watch's number."""
        key = next(self._numbers)
        self._callbacks[key] = callback
        return self.call("watch", resolver, key, list(names), poll_s)

    def close(self) -> None:
        """Close the resolvers there and end the process."""
        self._process.stdin.close()
        self._process.wait(60)
        self._reader.join(60)
        self._process.stdout.close()

    def _send(self, **message: object) -> None:
        with self._write_lock:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        for line in self._process.stdout:
            arrived_at = time.monotonic()
            message = json.loads(line)
            if "callback" in message:
                self._call_back(message)
                continue
            answer = self._answers.pop(message["id"])
            if "error" in message:
                answer.set_exception(getattr(errors, message["error"])(message["message"]))
            else:
                answer.set_result(Answer(message["result"], arrived_at))
        for answer in self._answers.values():
            answer.set_exception(ConnectionError("the node's process has ended"))

    def _call_back(self, message: dict[str, Any]) -> None:
        error = None
        try:
            self._callbacks[message["watch"]](message["name"])
        except RuntimeError as failure:
            error = str(failure)
        self._send(callback=message["callback"], error=error)


class RemoteWatch:
    """A `NameWatch` on a node."""

    def __init__(self, node: RemoteNode, number: int) -> None:
        self._node = node
        self._number = number

    @property
    def error(self) -> str | None:
        return self._node.call("watch_state", self._number)["error"]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._node.call("watch_state", self._number)["names"])

    def check(self) -> None:
        self._node.call("check", target=self._number)

    def close(self) -> None:
        self._node.call("close", target=self._number)


class RemoteResolver(NameResolver):
    """A `FileNameResolver` on a node."""

    def __init__(self, node: RemoteNode, directory: str) -> None:
        self.node = node
        self.number: int = node.call("open", directory)

    def add(self, *arguments: object, **keywords: object) -> None:
        self.node.call("add", *arguments, target=self.number, **keywords)

    def get(self, name: str) -> str:
        return self.node.call("get", name, target=self.number)

    def wait(self, name: str, timeout: float | None = None) -> str:
        return self.node.call("wait", name, timeout, target=self.number)

    def delete(self, name: str) -> None:
        self.node.call("delete", name, target=self.number)

    def find_subtree(self, name_root: str) -> list[str]:
        return self.node.call("find_subtree", name_root, target=self.number)

    def get_subtree(self, name_root: str) -> list[str]:
        return self.node.call("get_subtree", name_root, target=self.number)

    def get_items(self, name_root: str) -> dict[str, str]:
        return self.node.call("get_items", name_root, target=self.number)

    def clear_subtree(self, name_root: str) -> None:
        self.node.call("clear_subtree", name_root, target=self.number)

    def watch_names(
        self, names: Sequence[str], callback: Callable[[str], object], poll_interval_s: float = 1.0
    ) -> RemoteWatch:
        return RemoteWatch(self.node, self.node.watch(self.number, names, callback, poll_interval_s))

    def close(self) -> None:
        self.node.call("close", target=self.number)
