"""A TCP proxy that loses bytes on demand, and the connection with them, as a network does."""

from __future__ import annotations

import selectors
import socket
import threading
from dataclasses import dataclass


@dataclass(eq=False)
class _Direction:
    source: socket.socket
    target: socket.socket
    name: str  # "request" or "reply"


class TcpProxy:
    """Forwards connections to 127.0.0.1:`target_port`; `lose("reply")` cuts at the next bytes of that direction."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._waker, self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._to_lose: list[str] = []
        self.num_lost = 0
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def lose(self, *directions: str) -> None:
        """Cut once for each of `directions`, in that order."""
        self._to_lose.extend(directions)

    def close(self) -> None:
        """Cut everything."""
        self._waker.close()
        self._thread.join()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    for opened in list(self._selector.get_map().values()):
                        opened.fileobj.close()  # type: ignore[union-attr]
                    self._selector.close()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd >= 0 and key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                    self._forward(key.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            client.close()
            return
        self._selector.register(client, selectors.EVENT_READ, _Direction(client, server, "request"))
        self._selector.register(server, selectors.EVENT_READ, _Direction(server, client, "reply"))

    def _forward(self, direction: _Direction) -> None:
        try:
            content = direction.source.recv(1 << 16)
        except OSError:
            content = b""
        lost = bool(content and self._to_lose and self._to_lose[0] == direction.name)
        if lost:
            self._to_lose.pop(0)
            self.num_lost += 1
        try:
            if content and not lost:
                direction.target.sendall(content)
                return
        except OSError:
            pass
        for end in (direction.source, direction.target):
            self._selector.unregister(end)
            end.close()
