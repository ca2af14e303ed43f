"""ControllerLease: the exclusive right to drive a run, a name entry that its holder keeps alive."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpc_marl.base import names
from hpc_marl.base.run_context import RunContext
from hpc_marl.errors import NameEntryExistsError, NameEntryNotFoundError, NameResolveError

_log = logging.getLogger(__name__)

LEASE_TTL_S = 15.0
"""A holder that shows no sign of life for so long has lost the lease."""
_CHECK_INTERVAL_S = 2.0


@dataclass(frozen=True)
class LeaseHolder:
    """Who drives a run.

    Attributes:
        host: where its process is.
        pid: the process.
        kind: `session` (a person's command) or `job` (the deputy in the core job).
        token: this one process.
    """

    host: str
    pid: int
    kind: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.kind})"


class ControllerLease:
    """Take it with `acquire`, look now and then whether it `holds`, give it back with `release`.

    Args:
        context: of the run.
        kind: see `LeaseHolder`.
        ttl_s: see `LEASE_TTL_S`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        context: RunContext,
        kind: str,
        *,
        ttl_s: float = LEASE_TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver, self._ttl_s, self._clock = context.resolver, ttl_s, clock
        self._key = names.controller(context.experiment_name, context.trial_name)
        self.own = LeaseHolder(socket.gethostname(), os.getpid(), kind, uuid.uuid4().hex)
        self._next_check_s = 0.0
        self._held = False

    def acquire(
        self, timeout_s: float, poll_s: float = 0.5, give_up: Callable[[], bool] = lambda: False
    ) -> bool:
        """Take the lease; one whose holder is dead becomes free after its time to live.

        Args:
            timeout_s: to wait for it.
            poll_s: between two trials.
            give_up: asked before every further trial, whether to wait no longer.

        Returns:
            False if somebody else held it all the time.
        """
        deadline = self._clock() + timeout_s
        while True:
            try:
                self._resolver.add(self._key, json.dumps(vars(self.own)), keepalive_ttl=self._ttl_s)
            except NameEntryExistsError:
                if self._clock() >= deadline or give_up():
                    return False
                time.sleep(poll_s)
            else:
                self._held = True
                self._next_check_s = self._clock() + _CHECK_INTERVAL_S
                return True

    def holder(self) -> LeaseHolder | None:
        """Return who holds the lease, None if nobody does."""
        try:
            found: dict[str, Any] = json.loads(self._resolver.get(self._key))
        except NameEntryNotFoundError:
            return None
        return LeaseHolder(**found)

    def holds(self) -> bool:
        """Whether this process still has the lease; looks at most every two seconds, a look that fails says yes."""
        if self._held and self._clock() >= self._next_check_s:
            self._next_check_s = self._clock() + _CHECK_INTERVAL_S
            try:
                holder = self.holder()
            except NameResolveError:
                return True
            # None: our own entry was seen late, or expired while this process stood still. Both are taken as lost,
            # because somebody else may be acting already.
            self._held = holder is not None and holder.token == self.own.token
        return self._held

    def release(self) -> None:
        """Give the lease back if it is still ours."""
        if not self._held:
            return
        self._held = False
        try:
            if (holder := self.holder()) is not None and holder.token == self.own.token:
                self._resolver.delete(self._key)
        except NameResolveError as error:
            _log.warning("the lease is left to expire: %s", error)
