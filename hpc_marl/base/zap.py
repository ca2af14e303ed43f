"""The thread that answers libzmq's question "may this client in?" (ZeroMQ's ZAP, RFC 27).

It fails closed: sockets are made with ZAP_ENFORCE_DOMAIN, so when this thread ends, for whatever reason, its
socket closes and libzmq admits nobody any more.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time

import zmq
from zmq.utils import z85

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"hpc_marl"

_logger = logging.getLogger(__name__)
_ADMIT, _DENY = b"200", b"400"
# version, request id, domain, address, routing id, mechanism, and for CURVE the client's public key
_NUM_REQUEST_FRAMES = 7
_SECONDS_BETWEEN_LOG_LINES_PER_PEER = 60.0
_MAX_LOGGED_PEERS = 1024


class ZapAuthenticator:
    """Admits CURVE clients that hold one given key, and nobody else.

    Args:
        socket: a REP socket bound to `ZAP_ENDPOINT`; the thread owns and closes it.
        client_public: the admitted key in Z85.
    """

    def __init__(self, socket: zmq.Socket[bytes], client_public: bytes) -> None:
        self._socket = socket
        self._admitted_key = z85.decode(client_public)
        self._last_logged: dict[bytes, float] = {}
        self._thread = threading.Thread(target=self._run, name="hpc_marl-zap", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether clients can still be admitted."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread, which ends when the context is terminated."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self.answer(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            pass  # The factory is closing.
        except zmq.ZMQError as error:
            _logger.error("authentication stopped (%s): no new client is admitted", error)
        finally:
            # Also on an exception nobody thought of: an unbound endpoint denies everybody at once.
            self._socket.close(linger=0)

    def answer(self, request: list[bytes]) -> list[bytes]:
        """Return the reply to one ZAP request; anything unexpected is denied, nothing raises."""
        request_id = request[1] if len(request) > 1 else b""
        admitted = (
            len(request) == _NUM_REQUEST_FRAMES
            and request[0] == b"1.0"
            and request[2] == ZAP_DOMAIN
            and request[5] == b"CURVE"
            and hmac.compare_digest(request[6], self._admitted_key)
        )
        if not admitted:
            self._log_denied(request[3] if len(request) > 3 else b"")
        status, text = (_ADMIT, b"OK") if admitted else (_DENY, b"key not known here")
        return [b"1.0", request_id, status, text, b"", b""]

    def _log_denied(self, peer: bytes) -> None:
        now = time.monotonic()
        if now - self._last_logged.get(peer, float("-inf")) < _SECONDS_BETWEEN_LOG_LINES_PER_PEER:
            return
        if len(self._last_logged) >= _MAX_LOGGED_PEERS:
            self._last_logged.clear()
        self._last_logged[peer] = now
        _logger.warning(
            "denied a client at %s: its key is not the one of this run", peer.decode("ascii", "replace")
        )
