"""Answers: what a sample receiver tells its senders, in their lane or by ZMQ."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Collection, Mapping

import zmq

from hpc_marl.base import serialization
from hpc_marl.streams.sample_credits import CreditBook
from hpc_marl.streams.sample_messages import Credit, ReceiverMessage
from hpc_marl.streams.sample_peer import Peer, Shared

PATIENCE_S = 0.001
"""How long a release by ZMQ may wait for others, to go in one message with them."""
_SHARE = 4
"""Of what a sender was granted: releases of this part of it, or more, are told at once."""


class Answers:
    """Sends without waiting. A message that cannot leave is made up for when the sender asks (Ping).

    A message costs both ends as much as a small batch does. Releases therefore wait for each other until they are a
    quarter of what the sender was granted, which leaves it enough to go on with, or until `PATIENCE_S` are over.

    Args:
        socket: of the receiver.
        peers: those that were let in, by stream.
        credit_book: tells their grants.
        ignored: counts what could not be sent.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        peers: Mapping[str, Peer],
        credit_book: CreditBook,
        ignored: Counter[str],
    ) -> None:
        self._socket = socket
        self._peers = peers
        self._credits = credit_book
        self._ignored = ignored
        self._pending: dict[str, list[int]] = {}
        """What is released and was not yet said by ZMQ."""
        self._lanes: dict[Peer, Shared] = {}
        """Those in whose lane something was released."""
        self._due_s = 0.0

    def release(self, peer: Peer, seq: int) -> None:
        """Give the slot of a batch back; `tell` follows."""
        slot, shared = peer.held.pop(seq), peer.shared
        if shared is not None:
            shared.lane.release(slot, seq)
            self._lanes[peer] = shared
            return
        if not self._pending:
            self._due_s = time.monotonic() + PATIENCE_S
        self._pending.setdefault(peer.stream, []).append(seq)

    @property
    def are_waiting(self) -> bool:
        """Whether some are yet to be sent."""
        return bool(self._pending)

    def tell(self, changed: Collection[str], *, now: bool = False) -> None:
        """Send what is due: to all whose grant has changed, and releases that are enough or have waited long enough.

        Args:
            changed: streams with a new grant.
            now: send all releases.
        """
        for peer, shared in self._lanes.items():
            if self._peers.get(peer.stream) is peer:
                shared.publish()
        self._lanes.clear()
        if self._pending or changed:
            self._tell(changed, now or (bool(self._pending) and time.monotonic() >= self._due_s))

    def _tell(self, changed: Collection[str], now: bool) -> None:
        for stream in dict.fromkeys((*self._pending, *changed)):
            peer = self._peers.get(stream)
            if peer is None:
                self._pending.pop(stream, None)
                continue
            grant = self._credits.grant(stream)
            if peer.shared is not None:
                peer.shared.give(grant)
                continue
            released = self._pending.get(stream, [])
            if now or stream in changed or _SHARE * len(released) >= grant.batches:
                self._pending.pop(stream, None)
                self.send(peer.routing_id, Credit(stream=stream, released=released, grant=grant))

    def send(self, routing_id: bytes, message: ReceiverMessage) -> None:
        """Send one message."""
        try:
            self._socket.send_multipart([routing_id, serialization.encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            self._ignored["unsendable"] += 1
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._ignored["unsendable"] += 1
