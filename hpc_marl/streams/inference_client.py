"""InferenceClient: the actor's end of the inference stream; see `hpc_marl.streams.inference`."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from hpc_marl.base.run_context import RunContext
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.errors import StreamError
from hpc_marl.streams.inference_layout import InferenceLayout
from hpc_marl.streams.inference_line import ServerLine
from hpc_marl.streams.inference_slots import InferenceSlots
from hpc_marl.streams.links import Transport, identity, look_up

_LOST_INTERVAL_S = 1.0
"""Between two looks for a server while there is none, or none that answers."""
_BALANCE_INTERVAL_S = 15.0
"""Between two looks whether servers have come or gone, so that clients spread over those that are there."""
_LONGEST_WAIT_S = 0.05
"""Between two looks at the clock while a caller waits for an answer."""
_SHORTEST_WAIT_S = 0.002


class InferenceReply(NamedTuple):
    """The answer to one request."""

    arrays: dict[str, NDArray[Any]]
    """What the policy worker sent: action, log_prob and, for recurrent policies, memory; views that are valid until
    the next call of the client."""
    policy_version: int


@dataclass(frozen=True)
class ClientStatistics:
    """What a client did so far."""

    submitted: int
    answered: int
    sent_again: int
    late: int
    """Answers to requests that had been answered or replaced before."""
    malformed: int
    servers: int
    """Servers that it turned to, one after another."""
    transport: str
    """How requests go at present: shared_memory, zmq, or none."""


@dataclass(eq=False, slots=True)
class _Open:
    """A group's open request."""

    id: int
    min_policy_version: int
    sent_s: float | None = None
    """When it left last; None where it has not."""
    policy_version: int = 0
    """Of the answer, once that is in the slot."""


class InferenceClient:
    """Asks one of the policy workers for actions; see `hpc_marl.streams.inference`. Not thread-safe.

    Args:
        context: of this process.
        root: where the servers publish.
        index: of the client: spreads the clients evenly over the servers.
        layout: of every group's requests and answers.
        num_groups: environment groups.
        timeout_s: a request that waits for this long is sent again, to the next server.
        transport: see `Transport`.
    """

    def __init__(
        self,
        context: RunContext,
        root: str,
        index: int,
        layout: InferenceLayout,
        *,
        num_groups: int = 1,
        timeout_s: float = 5.0,
        transport: Transport = "auto",
    ) -> None:
        self._context = context
        self._root = root
        self._index = self._position = index
        self._timeout_s = timeout_s
        self._client = uuid.uuid4().hex
        self._shared = transport == "auto"
        self._label = f"hpc_marl inference {context.incarnation}"
        self._slots = InferenceSlots.create(layout, num_groups, shared=self._shared, label=self._label)
        self._registered: list[tuple[str, bytes]] = []
        self._line: ServerLine | None = None
        self._open: dict[int, _Open] = {}
        self._unsent: set[int] = set()
        self._by_zmq: set[int] = set()
        self._ready: set[int] = set()
        """Groups whose request has to leave; has left by ZMQ; has its answer in the slot."""
        self._next_id = 0
        self._looked_s = self._kept_up_s = float("-inf")
        self._jitter = random.uniform(0.8, 1.2)
        self._answered = self._sent_again = self._late = self._malformed = self._servers = 0

    def submit(self, group: int, arrays: Mapping[str, NDArray[Any]], min_policy_version: int = 0) -> None:
        """Ask for the actions of one group; replaces an open request of the group.

        Args:
            group: environment group.
            arrays: those of the layout: observation [E, N, D], noise [E, N, K] and, where there are such, action_mask
                and memory; they are copied.
            min_policy_version: the answer must come from a policy of at least this version.

        Raises:
            StreamError: there is no such group, or the arrays are not those of the layout.
        """
        if not 0 <= group < len(self._slots.requests):
            raise StreamError(f"group {group} of a client with {len(self._slots.requests)} groups")
        self._slots.write_request(group, arrays)
        if group in self._open:
            self._forget(group)
        number, now, line = self._next_id, time.monotonic(), self._line
        self._next_id += 1
        opened = self._open[group] = _Open(number, min_policy_version)
        self._unsent.add(group)
        if line is not None:
            self._send(line, group, opened, now)
        # A group may be without an answer for long although others are answered again and again.
        if self._unsent or now - self._kept_up_s >= _SHORTEST_WAIT_S:
            self._keep_up()

    def wait(self, timeout_s: float) -> bool:
        """Return whether an answer can be collected, waiting up to `timeout_s` for the first one."""
        if self._ready:
            return True
        deadline, left_s = time.monotonic() + timeout_s, timeout_s
        while True:
            self._receive(max(left_s, 0.0))
            if self._ready:
                return True
            self._keep_up()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False

    def collect(self, group: int, timeout_s: float = 0.0) -> InferenceReply | None:
        """Return the answer to the group's open request, or None where it is not there after `timeout_s`.

        Raises:
            StreamError: the group has no open request.
        """
        opened = self._open.get(group)
        if opened is None:
            raise StreamError(f"group {group} has submitted nothing that could be collected")
        if group not in self._ready:
            deadline, left_s = time.monotonic() + timeout_s, timeout_s
            while True:
                self._receive(left_s)
                if group in self._ready:
                    break
                self._keep_up()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
        self._forget(group)
        return InferenceReply(self._slots.replies[group], opened.policy_version)

    def take(self, group: int) -> InferenceReply | None:
        """Return the answer to the group's open request if `wait` has heard of it: `collect` without a system call.

        Raises:
            KeyError: the group has no open request.
        """
        opened = self._open[group]
        if group not in self._ready:
            return None
        self._forget(group)
        return InferenceReply(self._slots.replies[group], opened.policy_version)

    def statistics(self) -> ClientStatistics:
        """Return counters."""
        line = self._line
        return ClientStatistics(
            submitted=self._next_id,
            answered=self._answered,
            sent_again=self._sent_again,
            late=self._late,
            malformed=self._malformed + (0 if line is None else line.malformed),
            servers=self._servers,
            transport="none" if line is None else "shared_memory" if line.is_attached else "zmq",
        )

    def close(self) -> None:
        """Give up what is open and disconnect."""
        for group in list(self._open):
            self._forget(group)
        self._disconnect()
        self._slots.close()

    # ---- requests and their answers

    def _forget(self, group: int) -> None:
        """The group has no open request any more."""
        del self._open[group]
        self._ready.discard(group)
        self._unsent.discard(group)
        self._by_zmq.discard(group)

    def _send(self, line: ServerLine, group: int, opened: _Open, now: float) -> None:
        if not line.is_attached:
            self._by_zmq.add(group)
        if line.ask(self._slots, group, opened.id, opened.min_policy_version):
            opened.sent_s = now
            self._unsent.discard(group)

    def _receive(self, timeout_s: float) -> None:
        if self._line is None:
            time.sleep(min(timeout_s, _SHORTEST_WAIT_S))
            return
        longest_s = _SHORTEST_WAIT_S if self._unsent else _LONGEST_WAIT_S
        answers = self._line.answers(self._slots, min(timeout_s, longest_s), len(self._by_zmq))
        for number, policy_version, group, content in answers:
            opened = self._open.get(group)
            if opened is None or opened.id != number or group in self._ready:
                self._late += 1
                continue
            if content is not None:
                self._slots.reply_bytes[group][:] = content
            opened.policy_version = policy_version
            self._ready.add(group)
            self._answered += 1

    # ---- the server: choosing it, talking to it

    def _keep_up(self) -> None:
        """Send what has not left; turn to another server where the present one does not answer."""
        now = time.monotonic()
        if not self._unsent and now - self._kept_up_s < _SHORTEST_WAIT_S:
            return
        self._kept_up_s = now
        overdue = any(
            group not in self._ready and opened.sent_s is not None and now - opened.sent_s >= self._timeout_s
            for group, opened in self._open.items()
        )
        connected = self._line is not None and self._line.is_up()
        interval = _BALANCE_INTERVAL_S if connected and not overdue else _LOST_INTERVAL_S
        if now - self._looked_s >= interval * self._jitter:
            self._looked_s = now
            self._choose(connected, overdue)
        if (line := self._line) is None:
            return
        line.offer(self._slots, self._timeout_s)
        if self._unsent and line.is_up():
            for group in sorted(self._unsent):
                self._send(line, group, self._open[group], now)

    def _choose(self, connected: bool, overdue: bool) -> None:
        """Turn to the server that is ours among those registered now, or to the one after it."""
        servers = self._look_up()
        registered = [identity(record) for record in servers]
        if registered != self._registered:
            self._registered, self._position = registered, self._index
        elif self._line is not None and (overdue or not connected):
            self._position += 1
        if not servers:
            return
        record = servers[self._position % len(servers)]
        changed = self._line is None or identity(record) != identity(self._line.record)
        if changed or overdue:
            self._begin_anew()
        if changed:
            self._disconnect()
            self._line = ServerLine(self._context, record, self._client, shared=self._shared)
            self._servers += 1

    def _begin_anew(self) -> None:
        """Send all that is open again; a server that was too slow may still write to the slots that it knows."""
        if self._line is not None:
            self._line.detach()
        if self._slots.handle is not None:
            old, self._slots = self._slots, self._slots.renewed(shared=self._shared, label=self._label)
            old.close()
        for group, opened in self._open.items():
            if group not in self._ready:
                self._sent_again += opened.sent_s is not None
                opened.sent_s = None
                self._unsent.add(group)

    def _look_up(self) -> list[ServiceRecord]:
        keys = self._context.resolver.find_subtree(self._root)
        return [record for key in keys if (record := look_up(self._context, key)) is not None]

    def _disconnect(self) -> None:
        if self._line is not None:
            self._malformed += self._line.malformed
            self._line.close()
            self._line = None
