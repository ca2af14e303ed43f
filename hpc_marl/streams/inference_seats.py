"""ClientSeat: a client of the server's own node, whose slots it reads and writes in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from hpc_marl.base.doorbell import DoorbellButton
from hpc_marl.base.network import host_identity
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.inference_layout import decode_layout
from hpc_marl.streams.inference_messages import ANSWER, Attach
from hpc_marl.streams.inference_slots import InferenceSlots, slots_bytes

_MAX_ANSWERS_PER_WRITE = 16  # 512 bytes, which a pipe takes as one


class _Request(Protocol):
    """What a seat needs to know of a request."""

    id: int
    group: int


class ClientSeat:
    """One attached client; ends with `close`.

    Attributes:
        client: its id.
        slots: its slots.
        token: names the slots.
        num_groups: how many.
    """

    def __init__(self, client: str, token: bytes, slots: InferenceSlots, button: DoorbellButton) -> None:
        """Use `attach_seat`."""
        self.client = client
        self.slots = slots
        self.token = token
        self.num_groups = len(slots.requests)
        self._button = button
        self._answered: list[bytes] = []
        self._is_open = True

    def answer(
        self, request: _Request, arrays: Mapping[str, NDArray[Any]], place: slice, policy_version: int
    ) -> None:
        """Write the answer into the slot; the client hears of it at `flush`."""
        if self._is_open:
            self.slots.write_reply(request.group, arrays, place)
        self._answered.append(ANSWER.pack(request.id, policy_version, request.group))

    def flush(self) -> int:
        """Tell the client of its answers; return how many could not be told: it has gone, or hears nothing."""
        answered, self._answered = self._answered, []
        told = 0
        for start in range(0, len(answered), _MAX_ANSWERS_PER_WRITE):
            part = answered[start : start + _MAX_ANSWERS_PER_WRITE]
            told += len(part) if self._tell(b"".join(part)) else 0
        return len(answered) - told

    def close(self) -> None:
        """Let go of the slots."""
        self._is_open = False
        self._button.close()
        self.slots.close()

    def _tell(self, message: bytes) -> bool:
        try:
            return self._is_open and self._button.send(message)
        except StreamError:
            return False


def attach_seat(offer: Attach, max_bytes: int) -> ClientSeat:
    """Return the seat of a client that offers its slots.

    Raises:
        ProtocolError: the offer is no possible one.
        StreamError: the slots or the bell are out of reach; the client goes on by ZMQ.
    """
    if offer.host_identity != host_identity():
        raise StreamError("the client is on another node")
    layout = decode_layout(offer.layout)
    if slots_bytes(layout, 1) > max_bytes:
        raise ProtocolError(f"slots of {slots_bytes(layout, 1)} bytes; at most {max_bytes} are accepted")
    slots = InferenceSlots.attach(layout, offer.num_groups, offer.memory)
    try:
        button = DoorbellButton(offer.bell)
    except StreamError:
        slots.close()
        raise
    return ClientSeat(offer.client, offer.memory.token, slots, button)
