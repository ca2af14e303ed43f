"""What libzmq saw happen to one connection, in words: the difference between a hang and an error."""

from __future__ import annotations

import struct

import zmq

_EVENT = struct.Struct("=hi")  # of zmq_socket_monitor(3): the event, and its value
# A single broken handshake also happens when a good server restarts; a wrong key breaks every one.
_NUM_BROKEN_HANDSHAKES_TO_REFUSE = 3
_FOREIGN_SERVER = (
    "the process listening there does not have the expected server key: a stale address or a foreign process"
)
_EVENTS = (
    zmq.Event.CONNECTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
)


class ConnectionMonitor:
    """Follows a connecting socket from TCP to the end of the CURVE handshake.

    Poll `socket` for POLLIN together with the monitored one, then call `observe()`.

    Attributes:
        socket: carries the events.
        ready: the handshake has succeeded and the connection has not been lost since.
        lost: a connection that was ready has been lost, though there may be another one by now.
        refusal: why this connection will not come about, None while it still may. libzmq does not try again
            after some refusals, so a refused socket must be replaced by a new one.
    """

    def __init__(self, monitored: zmq.Socket[bytes]) -> None:
        self._monitored = monitored
        self.socket: zmq.Socket[bytes] = monitored.get_monitor_socket(_EVENTS)
        self.socket.linger = 0
        self.ready = False
        self.lost = False
        self.refusal: str | None = None
        self._num_broken_handshakes = 0
        self._handshake_open = False
        self._last_seen = "no process answers there: none listens, or a firewall is in between"

    def observe(self) -> None:
        """Take in all events that have happened."""
        while not self.socket.closed:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(zmq.Event(_EVENT.unpack(frames[0])[0]))

    def _take(self, event: zmq.Event) -> None:
        if event == zmq.Event.CONNECTED:
            self._handshake_open = True
            self._last_seen = "a process is listening there, but has not finished the handshake"
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.ready, self._handshake_open, self._num_broken_handshakes = True, False, 0
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self.refusal = "the server there does not know this client's key: the two use different keys"
        elif event == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
            self._handshake_open = False
            self._num_broken_handshakes += 1
            self._last_seen = "the process listening there broke off the handshake"
            if self._num_broken_handshakes >= _NUM_BROKEN_HANDSHAKES_TO_REFUSE:
                self.refusal = _FOREIGN_SERVER
        elif event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            self.refusal = _FOREIGN_SERVER
        elif event == zmq.Event.DISCONNECTED:
            if self._handshake_open:
                # Bytes that are no ZeroMQ greeting: libzmq reports no failure and never tries again.
                self.refusal = self.refusal or _FOREIGN_SERVER
            elif self.ready:
                self.lost = True
                self._last_seen = "the connection was lost"
            self.ready = self._handshake_open = False

    @property
    def state(self) -> str:
        """What was seen last, as a clause for an error message."""
        return self.refusal or ("the connection is up" if self.ready else self._last_seen)

    def close(self) -> None:
        """Stop monitoring; the monitored socket goes on."""
        if self.socket.closed:
            return
        if not self._monitored.closed:
            self._monitored.disable_monitor()
        self.socket.close(linger=0)
