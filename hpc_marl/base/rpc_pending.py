"""PendingReply: one remote call under way, and what became of it."""

from __future__ import annotations

from typing import Any

from hpc_marl.base.rpc_messages import AnyReply, Reply, result_of
from hpc_marl.errors import HpcMarlError


class PendingReply:
    """One call under way.

    Attributes:
        counter: its id within the client.
        command: what was called.
        payload: the request, encoded.
        timeout_s: how long it may take, in seconds.
        deadline: when it ends at the latest (time.monotonic()).
        done: whether `result()` can be had.
        sent: whether it is on its way over the present connection.
    """

    __slots__ = ("_error", "_value", "command", "counter", "deadline", "done", "payload", "sent", "timeout_s")

    def __init__(self, counter: int, command: str, payload: bytes, timeout_s: float, deadline: float) -> None:
        self.counter = counter
        self.command = command
        self.payload = payload
        self.timeout_s = timeout_s
        self.deadline = deadline
        self.done = False
        self.sent = False
        self._value: Any = None
        self._error: HpcMarlError | None = None

    def result(self) -> Any:
        """Return what the handler returned, or raise what the call ended with.

        Raises:
            HpcMarlError: see `RpcClient.request`.
            RuntimeError: the call is still under way.
        """
        if not self.done:
            raise RuntimeError(f"the call of {self.command!r} is still under way; poll its channel first")
        if self._error is not None:
            raise self._error
        return self._value

    def resolve(self, reply: AnyReply) -> None:
        """End the call with a reply."""
        if type(reply) is Reply and reply.error is None:  # nearly always
            self._value = reply.value
            self.done = True
            return
        try:
            self._value = result_of(reply)
        except HpcMarlError as error:
            self._error = error
        self.done = True

    def fail(self, error: HpcMarlError) -> None:
        """End the call without a reply."""
        self._error = error
        self.done = True
