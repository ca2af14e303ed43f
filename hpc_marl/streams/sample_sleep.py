"""Sleep: how a sample receiver waits for whatever comes first, a batch in some lane or a message by ZMQ."""

from __future__ import annotations

import select
from collections.abc import Collection

import zmq

from hpc_marl.base.doorbell import Doorbell
from hpc_marl.base.shared_memory import fence
from hpc_marl.streams.sample_peer import Peer


class Sleep:
    """Waits at a bell, which senders of the same node ring, and at the socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.bell = Doorbell()
        """Rung by whoever writes to its lane while the receiver waits."""
        self._poll = select.poll()  # zmq.Poller costs 5 us more, for every sleep
        self._poll.register(self.bell, select.POLLIN)
        self._poll.register(socket.fileno(), select.POLLIN)

    def wait(self, peers: Collection[Peer], timeout_s: float) -> bool:
        """Return after `timeout_s`, or once there is something to look at in a lane or, most likely, at the socket;
        whether the latter may be.

        All that the socket has said must have been taken: its descriptor only tells of what comes after that.
        """
        lanes = [peer.shared.lane for peer in peers if peer.shared is not None]
        for lane in lanes:
            lane.set_receiver_waits(True)
        fence()
        found = []
        if not any(peer.has_news() for peer in peers):
            found = [fd for fd, _ in self._poll.poll(timeout_s * 1000)]
            if self.bell.fileno() in found:
                found.remove(self.bell.fileno())
                self.bell.clear()
        for lane in lanes:
            lane.set_receiver_waits(False)
        return bool(found)

    def close(self) -> None:
        """Let go of the bell."""
        self.bell.close()
