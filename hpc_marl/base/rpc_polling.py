"""Waiting for calls on several connections at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import zmq

from hpc_marl.base.rpc_channel import RpcChannel


def poll_channels(channels: Collection[RpcChannel], timeout_s: float | None = None) -> None:
    """Wait until something happens to a call under way (or `timeout_s` is over), then process what is due.

    Returns at once if no call is under way and no timeout is given.
    """
    active = [channel for channel in channels if channel.num_pending]
    wakeups = [wakeup for channel in active if (wakeup := channel.next_wakeup()) is not None]
    limits = [max(0.0, min(wakeups) - time.monotonic())] if wakeups else []
    if timeout_s is not None:
        limits.append(timeout_s)
    poller = zmq.Poller()
    owners: dict[zmq.Socket[bytes], RpcChannel] = {}
    for channel in active:
        for socket, flags in channel.pollables():
            poller.register(socket, flags)
            owners[socket] = channel
    # Rounded up: waking a fraction of a millisecond early would spin until the time has come.
    ready = poller.poll(int(1000 * min(limits)) + 1) if limits else []
    now = time.monotonic()
    due = {id(owners[socket]): owners[socket] for socket, _ in ready}
    due.update({id(c): c for c in active if (wakeup := c.next_wakeup()) is not None and wakeup <= now})
    for channel in due.values():
        channel.process()


def wait_for(channels: Collection[RpcChannel], finished: Callable[[], bool]) -> None:
    """Poll `channels` until `finished()`; where that asks for replies to be done, their deadlines end it."""
    while not finished():
        poll_channels(channels)
