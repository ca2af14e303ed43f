"""A TCP proxy whose connections can be cut at any moment, with whatever is on its way in them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading


class CuttingProxy:
    """Forwards connections to one port; `cut` breaks all of them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> int:
        """Reset every connection; return how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            for pair in pairs:
                for end in pair:
                    self._selector.unregister(end)
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not FIN
                    end.close()
        return len(pairs)

    def close(self) -> None:
        self._stopped = True
        self._thread.join()
        self.cut()
        self._selector.close()
        self._listener.close()

    def _run(self) -> None:
        while not self._stopped:
            events = self._selector.select(0.02)
            with self._lock:
                for key, _ in events:
                    if key.data is None:
                        self._accept()
                    elif any(key.fileobj in pair for pair in self._pairs):
                        self._forward(key.fileobj, key.data)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target_port))
        self._pairs.append((near, far))
        self._selector.register(near, selectors.EVENT_READ, far)
        self._selector.register(far, selectors.EVENT_READ, near)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data = source.recv(65536)
            if data:
                sink.sendall(data)
                return
        for pair in [pair for pair in self._pairs if source in pair]:
            self._pairs.remove(pair)
            for end in pair:
                self._selector.unregister(end)
                end.close()
