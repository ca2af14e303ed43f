"""Byte credits: how many batches each sender may have under way, so that all fit the receiver's budget."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many batches a sender may be writing or have under way."""

    number: int
    """Grows with every change."""
    batches: int


NO_GRANT = Grant(0, 0)


@dataclass
class _Line:
    """The credit of one sender."""

    batch_bytes: int
    minimum: int
    maximum: int
    granted: int
    limit: int
    """The most the sender may use by what it was granted before, or is using."""
    number: int = 0
    """Number of the present grant; what the sender says of its limit counts once it has heard of this one."""

    @property
    def reserved_bytes(self) -> int:
        return max(self.granted, self.limit) * self.batch_bytes

    def change(self, granted: int) -> None:
        # The old grant stays reserved until the sender has heard of the new one.
        self.limit = max(self.limit, self.granted)
        self.granted = granted
        self.number += 1


class CreditBook:
    """Shares `max_bytes` among senders. Pure.

    Bound: what is under way or held never exceeds `max_bytes` plus the minimal grants of the senders that are there
    (or have died and left batches behind). The argument: `reserved_bytes` is an upper bound of what a sender has or
    may commit, because a lower grant only counts once the sender has said that it acts by it; and `rebalance` raises
    a grant only while the sum of all reservations stays within `max_bytes`.

    Every sender gets its minimum (one batch for each of its environment groups) however small the budget
    is: with less a group would never get its turn, and an update that waits for one batch of every group
    would wait for ever.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lines: dict[str, _Line] = {}
        self._left_bytes = 0
        self._is_balanced = True

    def join(self, stream: str, *, batch_bytes: int, minimum: int, maximum: int, limit: int) -> None:
        """Let a sender in with its minimum.

        Args:
            stream: id of the sender.
            batch_bytes: size of its batches.
            minimum: batches it must be able to have under way.
            maximum: slots it has.
            limit: batches that it is writing already.
        """
        self._is_balanced = False
        minimum = min(minimum, maximum)
        self._lines[stream] = _Line(batch_bytes, minimum, maximum, minimum, limit)

    def leave(self, stream: str, held: int) -> None:
        """Take a sender out of the sharing; `held` of its batches keep their bytes until `settle_left`."""
        self._is_balanced = False
        self._left_bytes += self._lines.pop(stream).batch_bytes * held

    def settle_left(self, num_bytes: int) -> None:
        """Return the bytes of a batch whose sender has left."""
        self._is_balanced = False
        self._left_bytes -= num_bytes

    def confirm(self, stream: str, number: int, limit: int) -> None:
        """Take note of what a sender uses at most, by its own word after it had heard of grant `number`."""
        line = self._lines[stream]
        if number == line.number and limit != line.limit:
            line.limit = limit
            self._is_balanced = False

    def grant(self, stream: str) -> Grant:
        """Return the sender's present grant."""
        line = self._lines[stream]
        return Grant(line.number, line.granted)

    @property
    def reserved_bytes(self) -> int:
        """The most bytes that can be under way or held by all that was granted."""
        return self._left_bytes + sum(line.reserved_bytes for line in self._lines.values())

    @property
    def granted_batches(self) -> int:
        """Batches that all senders together may have under way."""
        return sum(line.granted for line in self._lines.values())

    def rebalance(self) -> list[str]:
        """Share the budget anew; return the senders whose grant has changed and who must be told."""
        if self._is_balanced:
            return []
        self._is_balanced = True
        shares = self._fair_shares()
        changed = [stream for stream, line in self._lines.items() if shares[stream] < line.granted]
        for stream in changed:
            self._lines[stream].change(shares[stream])
        free = self._max_bytes - self.reserved_bytes
        for stream, line in self._lines.items():
            wanted = shares[stream] - max(line.granted, line.limit)
            extra = min(wanted, max(free, 0) // line.batch_bytes)
            if extra > 0:
                free -= extra * line.batch_bytes
                line.change(max(line.granted, line.limit) + extra)
                changed.append(stream)
        return changed

    def _fair_shares(self) -> dict[str, int]:
        """Return the grants to aim at: one more for each in turn, while they fit."""
        shares = {stream: line.minimum for stream, line in self._lines.items()}
        free = self._max_bytes - sum(line.minimum * line.batch_bytes for line in self._lines.values())
        growing = [stream for stream, line in self._lines.items() if line.maximum > line.minimum]
        while growing:
            still_growing = []
            for stream in growing:
                line = self._lines[stream]
                if line.batch_bytes <= free:
                    free -= line.batch_bytes
                    shares[stream] += 1
                    if shares[stream] < line.maximum:
                        still_growing.append(stream)
            growing = still_growing
        return shares
