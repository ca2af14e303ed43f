"""The connecting end of a stream: finding the service at the other end, and its successor after a restart."""

from __future__ import annotations

import logging
import random
import time
from typing import Literal

import zmq

from hpc_marl.base.network import host_identity
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.service_records import ServiceRecord
from hpc_marl.errors import NameResolveError

Transport = Literal["auto", "zmq"]
"""auto: shared memory where both ends are on one node, else ZMQ; zmq: always ZMQ."""

_logger = logging.getLogger(__name__)

_ABSENT_INTERVAL_S = 0.5
"""Between two looks for a service that has never been seen; sooner where a look costs nothing."""
_FIRST_SHARE = 0.1
"""Where a look costs nothing, a service is late by a tenth at most of the time that it is waited for."""
_LOST_INTERVAL_S = 1.0
"""Between two looks while there is no connection: about how long a restarted service goes unnoticed."""
_SILENT_INTERVAL_S = 5.0
"""Between two looks at a service that is connected but says nothing: it is most likely busy."""


class RecordWatch:
    """Looks up one name entry, as seldom as will do: a whole cluster shares their file system.

    A record counts as new if it is of another process or socket and its epoch is not lower: an entry that a
    superseded process wrote again is not followed.
    """

    def __init__(self, context: RunContext, key: str) -> None:
        self._context = context
        self._key = key
        self._next_look_s = 0.0
        self._first_look_s: float | None = None
        self.record: ServiceRecord | None = None
        """The present service; None until one was found."""

    @property
    def epoch(self) -> int:
        """Epoch of the present service, -1 before there is one."""
        return -1 if self.record is None else record_epoch(self.record)

    def found_new(self, *, connected: bool) -> bool:
        """Look, if it is time to; return whether there is another service than before.

        Args:
            connected: whether the present one can still be reached.
        """
        now = time.monotonic()
        interval = _SILENT_INTERVAL_S if connected else _LOST_INTERVAL_S
        if self.record is None:
            interval = self._absent_interval_s(now)
        self._next_look_s = min(self._next_look_s, now + 1.2 * interval)
        if now < self._next_look_s:
            return False
        # Jitter: a thousand actors that lost one trainer must not ask in step.
        self._next_look_s = now + interval * random.uniform(0.8, 1.2)
        found = look_up(self._context, self._key)
        if found is None or record_epoch(found) < self.epoch:
            return False
        if self.record is not None and identity(found) == identity(self.record):
            return False
        self.record = found
        return True

    def _absent_interval_s(self, now: float) -> float:
        interval = self._context.resolver.look_interval_s
        if interval >= _ABSENT_INTERVAL_S:
            return _ABSENT_INTERVAL_S
        if self._first_look_s is None:
            self._first_look_s = now
        return min(interval, max(_FIRST_SHARE * interval, _FIRST_SHARE * (now - self._first_look_s)))


def record_epoch(record: ServiceRecord) -> int:
    """Return the epoch that a service was given, 0 where it has none."""
    epoch = record.extra.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def identity(record: ServiceRecord) -> tuple[str, bytes]:
    """Return what tells one opening of a service from every other: process and key of its socket."""
    return record.incarnation, record.public_key


def look_up(context: RunContext, key: str) -> ServiceRecord | None:
    """Return the record under `key`, None where there is none, or none can be read at the moment.

    Raises:
        SecurityError: the entry is forged.
    """
    try:
        return context.lookup(key)
    except NameResolveError as error:  # a shared file system has its bad moments: look again later
        _logger.warning("cannot look up %s now: %s", key, error)
        return None


def connect(
    context: RunContext, record: ServiceRecord, max_message_bytes: int | None = None
) -> zmq.Socket[bytes]:
    """Return a DEALER on its way to a service."""
    addresses = record.addresses_for(host_identity())
    return context.sockets.connect(
        zmq.DEALER, addresses, record.port, record.public_key, max_message_bytes=max_message_bytes
    )
