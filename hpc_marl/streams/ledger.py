"""The ledger of sample batches: each one produced is consumed, dropped for a reason, or in flight.

An account belongs to one stream: one `SampleSender` of one life of an actor, which numbers its batches from 0.

    batch seq arrives   seq == next: in flight
                        seq >  next: the gap is dropped("lost"), then in flight
                        seq <  next: ignored; it was booked when it arrived or was found missing
    in flight ->        consumed() | dropped(reason)
    stream ends         what its sender is known to have produced beyond `next` is dropped("lost")

So a batch is booked exactly once, whatever is repeated, reordered or lost on the way. A sender counts its
env_steps and agent_steps as it goes and says with every batch how many came before it; that is how the
steps of a batch that never arrived are known.

A checkpoint holds the ledger. Batches in flight at that time die with the trainer that held them:
`from_dict` books them as dropped("trainer_restart"). Those consumed after it were learned by weights that
are gone as well: nobody sends them again, and the next batch of that stream shows them as a gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from hpc_marl.errors import ProtocolError, StreamError

LOST = "lost"
TRAINER_RESTART = "trainer_restart"


# Checked where one is decoded; a difference may be negative.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Tally(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A number of batches and what is in them."""

    batches: _Count = 0
    env_steps: _Count = 0
    agent_steps: _Count = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.batches + other.batches,
            self.env_steps + other.env_steps,
            self.agent_steps + other.agent_steps,
        )

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.batches - other.batches,
            self.env_steps - other.env_steps,
            self.agent_steps - other.agent_steps,
        )

    @property
    def is_negative(self) -> bool:
        """Whether any of the three is below zero."""
        return min(self.batches, self.env_steps, self.agent_steps) < 0


NOTHING = Tally()


@dataclass(frozen=True)
class LedgerTotals:
    """The ledger at one moment, in batches; `env_steps` holds the same in env_steps."""

    produced: int
    consumed: int
    in_flight: int
    dropped: Mapping[str, int]
    """By reason."""
    ignored: int
    """Arrivals of batches that were accounted for before; not part of the balance."""
    produced_env_steps: int
    consumed_env_steps: int
    dropped_env_steps: int
    produced_agent_steps: int
    consumed_agent_steps: int
    dropped_agent_steps: int

    @property
    def dropped_total(self) -> int:
        """Batches dropped, for any reason."""
        return sum(self.dropped.values())


@dataclass
class _Account:
    """One stream."""

    produced: Tally = NOTHING
    """As far as is known here; its `batches` is the next sequence number."""
    consumed: Tally = NOTHING
    dropped: dict[str, Tally] = field(default_factory=dict)
    in_flight: dict[int, Tally] = field(default_factory=dict)
    ended: bool = False

    def drop(self, reason: str, tally: Tally) -> None:
        if tally != NOTHING:
            self.dropped[reason] = self.dropped.get(reason, NOTHING) + tally

    def merge(self, other: _Account) -> None:
        self.produced += other.produced
        self.consumed += other.consumed
        for reason, tally in other.dropped.items():
            self.drop(reason, tally)

    @property
    def imbalance(self) -> Tally:
        booked = sum(self.dropped.values(), self.consumed)
        return self.produced - sum(self.in_flight.values(), booked)


class Ledger:
    """Accounts for every batch of every stream; see the module's text. Pure, not thread-safe.

    Example:
        >>> ledger = Ledger()
        >>> ledger.received("a", 0, before=Tally(), batch=Tally(1, 8, 16))
        True
        >>> ledger.received("a", 2, before=Tally(2, 16, 32), batch=Tally(1, 8, 16))
        True
        >>> ledger.received("a", 2, before=Tally(2, 16, 32), batch=Tally(1, 8, 16))
        False
        >>> ledger.consumed("a", 0)
        >>> ledger.check()
        >>> totals = ledger.balance()
        >>> totals.produced, totals.consumed, dict(totals.dropped), totals.in_flight, totals.produced_env_steps
        (3, 1, {'lost': 1}, 1, 24)
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._ended = _Account()
        """Sum of the streams that ended with nothing in flight."""
        self._ended_streams: set[str] = set()
        self._ignored = 0

    def received(self, stream: str, seq: int, *, before: Tally, batch: Tally) -> bool:
        """Book the arrival of batch `seq`; return False where it was booked before and is to be ignored.

        Args:
            stream: id of the stream.
            seq: number of the batch in its stream.
            before: everything the stream had produced before this batch.
            batch: the batch itself, with `batches` 1.

        Raises:
            ProtocolError: the numbers contradict each other or what was received earlier; nothing is booked.
        """
        is_sound = batch.env_steps >= 0 <= batch.agent_steps and before.env_steps >= 0 <= before.agent_steps
        if not is_sound or not 0 <= seq == before.batches or batch.batches != 1:
            raise ProtocolError(f"batch {seq} of stream {stream} counts {batch} after {before}")
        account = self._accounts.get(stream) or self._open(stream)
        if account is None or account.ended or seq < account.produced.batches:
            self._ignored += 1
            return False
        if before != account.produced:
            self._advance(stream, account, before)
        account.produced = before + batch
        account.in_flight[seq] = batch
        return True

    def next_seq(self, stream: str) -> int | None:
        """Return the number of the batch that a stream's sender has to send next; None for a stream that has ended."""
        account = self._accounts.get(stream)
        if account is None:
            return None if stream in self._ended_streams else 0
        return None if account.ended else account.produced.batches

    def produced(self, stream: str, total: Tally) -> None:
        """Book what a stream is known to have produced in all; what has not arrived by now is lost.

        Raises:
            ProtocolError: the total contradicts what was received earlier; nothing is booked.
        """
        account = self._open(stream)
        if account is not None and not account.ended and total.batches > account.produced.batches:
            self._advance(stream, account, total)

    def end(self, stream: str, total: Tally | None = None) -> None:
        """Close a stream: nothing that arrives from it later counts. What is in flight may still be consumed.

        Args:
            stream: id of the stream.
            total: what it is known to have produced in all; None where only the arrivals tell.
        """
        if total is not None:
            self.produced(stream, total)
        account = self._open(stream)
        if account is not None:
            account.ended = True
            self._fold(stream, account)

    def consumed(self, stream: str, seq: int) -> None:
        """Book that the batch was learned from.

        Raises:
            StreamError: the batch is not in flight: unknown, or booked before.
        """
        account, tally = self._settle(stream, seq)
        account.consumed += tally
        if account.ended:
            self._fold(stream, account)

    def dropped(self, stream: str, seq: int, reason: str) -> None:
        """Book that the batch was thrown away.

        Raises:
            StreamError: the batch is not in flight: unknown, or booked before.
        """
        account, tally = self._settle(stream, seq)
        account.drop(reason, tally)
        if account.ended:
            self._fold(stream, account)

    def balance(self) -> LedgerTotals:
        """Return the sums over all streams."""
        whole = _Account()
        in_flight = 0
        for account in (self._ended, *self._accounts.values()):
            whole.merge(account)
            in_flight += len(account.in_flight)
        dropped = sum(whole.dropped.values(), NOTHING)
        return LedgerTotals(
            produced=whole.produced.batches,
            consumed=whole.consumed.batches,
            in_flight=in_flight,
            dropped=Counter({reason: tally.batches for reason, tally in whole.dropped.items()}),
            ignored=self._ignored,
            produced_env_steps=whole.produced.env_steps,
            consumed_env_steps=whole.consumed.env_steps,
            dropped_env_steps=dropped.env_steps,
            produced_agent_steps=whole.produced.agent_steps,
            consumed_agent_steps=whole.consumed.agent_steps,
            dropped_agent_steps=dropped.agent_steps,
        )

    def check(self) -> None:
        """Verify produced = consumed + dropped + in flight for every stream.

        Raises:
            StreamError: an account does not balance; names the stream and the difference.
        """
        for stream, account in (("(ended streams)", self._ended), *self._accounts.items()):
            if account.imbalance != NOTHING:
                raise StreamError(
                    f"the ledger of stream {stream} is out by {account.imbalance}: "
                    f"produced {account.produced}, consumed {account.consumed}, "
                    f"dropped {account.dropped}, in flight {account.in_flight}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint; `from_dict` reads them."""
        state = _State(
            accounts={stream: _saved(account) for stream, account in self._accounts.items()},
            ended=_saved(self._ended),
            ended_streams=sorted(self._ended_streams),
            ignored=self._ignored,
        )
        plain = msgspec.to_builtins(state)
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Ledger:
        """Return the ledger of a checkpoint, as the trainer that starts from it must see it.

        Raises:
            StreamError: `plain` is not what `to_dict` returns, or does not balance.
        """
        try:
            state = msgspec.convert(plain, _State)
        except msgspec.ValidationError as error:
            raise StreamError(f"this is not a ledger: {error}") from error
        ledger = cls()
        ledger._ended = _restored(state.ended)
        ledger._ended_streams = set(state.ended_streams)
        ledger._ignored = state.ignored
        for stream, saved in state.accounts.items():
            account = ledger._accounts[stream] = _restored(saved)
            ledger._fold(stream, account)
        ledger.check()
        return ledger

    def absorb(self, other: Ledger) -> None:
        """Take over the books of another ledger, which knows other streams."""
        self._accounts.update(other._accounts)
        self._ended.merge(other._ended)
        self._ended_streams |= other._ended_streams
        self._ignored += other._ignored

    def _open(self, stream: str) -> _Account | None:
        """Return the account of a stream, a new one if need be; None where it ended and was summed up."""
        if stream in self._ended_streams:
            return None
        account = self._accounts.get(stream)
        if account is None:
            account = self._accounts[stream] = _Account()
        return account

    def _advance(self, stream: str, account: _Account, to: Tally) -> None:
        gap = to - account.produced
        if gap.is_negative or (gap.batches == 0 and gap != NOTHING):
            raise ProtocolError(
                f"stream {stream} counts {to}, but {account.produced} is known: a gap of {gap}"
            )
        account.drop(LOST, gap)
        account.produced = to

    def _settle(self, stream: str, seq: int) -> tuple[_Account, Tally]:
        account = self._accounts.get(stream)
        tally = None if account is None else account.in_flight.pop(seq, None)
        if account is None or tally is None:
            raise StreamError(f"batch {seq} of stream {stream} is not in flight: it was accounted for before")
        return account, tally

    def _fold(self, stream: str, account: _Account) -> None:
        """Keep one sum for all finished streams: actors may die thousands of times in a run."""
        if account.ended and not account.in_flight:
            self._ended.merge(account)
            self._accounts.pop(stream)
            self._ended_streams.add(stream)


class _SavedAccount(msgspec.Struct, forbid_unknown_fields=True):
    produced: Tally
    consumed: Tally
    dropped: dict[str, Tally]
    ended: bool


class _State(msgspec.Struct, forbid_unknown_fields=True):
    accounts: dict[str, _SavedAccount]
    ended: _SavedAccount
    ended_streams: list[str]
    ignored: int


def _saved(account: _Account) -> _SavedAccount:
    """Return an account as a restarted trainer must see it: what is in flight now will be gone."""
    dropped = dict(account.dropped)
    if account.in_flight:
        gone = sum(account.in_flight.values(), NOTHING)
        dropped[TRAINER_RESTART] = dropped.get(TRAINER_RESTART, NOTHING) + gone
    return _SavedAccount(account.produced, account.consumed, dropped, account.ended)


def _restored(saved: _SavedAccount) -> _Account:
    return _Account(saved.produced, saved.consumed, dict(saved.dropped), {}, saved.ended)
