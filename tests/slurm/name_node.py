"""Name resolvers of one cluster node, driven by lines of JSON on stdin: `python name_node.py`.

    -> {"id": 1, "target": null, "call": "open", "arguments": ["/net/names"]}
    <- {"id": 1, "result": 0}                               number of the new resolver
    -> {"id": 2, "target": 0, "call": "get", "arguments": ["key"]}
    <- {"id": 2, "error": "NameEntryNotFoundError", "message": "..."}
    <- {"callback": 3, "watch": 7, "name": "key"}           a watched name vanished; answered by
    -> {"callback": 3, "error": null}                       the text of what the callback raised, if anything

Every call runs in a thread of its own. The end of stdin closes all resolvers and ends the process.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hpc_marl import errors
from hpc_marl.base.name_resolve_file import FileNameResolver

POLL_S = 0.05


class Node:
    """The objects of this node, by number: resolvers and their watches."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._callbacks: dict[int, Future[str | None]] = {}
        self._callback_numbers = itertools.count()
        self._write_lock = threading.Lock()
        self._objects_lock = threading.Lock()

    def send(self, **message: object) -> None:
        with self._write_lock:
            print(json.dumps(message), flush=True)

    def serve(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "callback" in message:
                self._callbacks.pop(message["callback"]).set_result(message["error"])
            else:
                threading.Thread(target=self._run, args=(message,), daemon=True).start()
        for item in self.objects:
            item.close()

    def _run(self, message: dict[str, Any]) -> None:
        target = self if message["target"] is None else self.objects[message["target"]]
        try:
            result = getattr(target, message["call"])(*message["arguments"], **message.get("keywords", {}))
        except errors.HpcMarlError as error:
            self.send(id=message["id"], error=type(error).__name__, message=str(error))
            return
        except OSError as error:
            self.send(id=message["id"], error="NameResolveError", message=str(error))
            return
        self.send(id=message["id"], result=result)

    # What the driver can call besides the methods of resolvers

    def open(self, directory: str) -> int:
        """Number of a new resolver on `directory`."""
        return self._number_of(FileNameResolver(directory))

    def host_name(self) -> str:
        """Where this is."""
        return socket.gethostname()

    def watch(self, resolver: int, key: int, names: list[str], poll_interval_s: float) -> int:
        """Number of a new watch, whose callback runs at the driver, which knows the watch as `key`."""

        def call_the_driver(name: str) -> None:
            callback, answer = next(self._callback_numbers), Future[str | None]()
            self._callbacks[callback] = answer
            self.send(callback=callback, watch=key, name=name)
            if error := answer.result():
                raise RuntimeError(error)

        return self._number_of(self.objects[resolver].watch_names(names, call_the_driver, poll_interval_s))

    def watch_state(self, watch: int) -> dict[str, Any]:
        """Error and remaining names of a watch."""
        error = self.objects[watch].error
        return {"error": error and str(error), "names": sorted(self.objects[watch].names)}

    def poll_get(self, resolver: int, name: str) -> str:
        """Ask for a name again and again without ever waiting for it."""
        while True:
            try:
                return self.objects[resolver].get(name)
            except errors.NameEntryNotFoundError:
                time.sleep(POLL_S)

    def poll_open(self, path: str, timeout_s: float) -> bool:
        """Plain open() again and again, without opening the directory, as a naive reader would."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                os.close(os.open(path, os.O_RDONLY))
            except FileNotFoundError:
                time.sleep(POLL_S)
            else:
                return True
        return False

    def list_again_and_again(self, path: str, duration_s: float) -> int:
        """List a directory as fast as possible, as many busy readers would; returns how often."""
        end = time.monotonic() + duration_s
        for count in itertools.count():
            os.listdir(path)
            if time.monotonic() > end:
                return count
        raise AssertionError("unreachable")

    def make_directory(self, path: str) -> None:
        """Make a directory with its parents."""
        Path(path).mkdir(parents=True, mode=0o700)

    def make_file(self, path: str) -> None:
        """Make a file."""
        Path(path).write_text("value")

    def _number_of(self, item: object) -> int:
        with self._objects_lock:
            self.objects.append(item)
            return len(self.objects) - 1


if __name__ == "__main__":
    Node().serve()
