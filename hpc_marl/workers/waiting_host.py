"""A host in waiting, as `EarlyHost` starts it: its nursery imports torch while it waits for orders."""

from __future__ import annotations

import os
import signal
import sys
from typing import NamedTuple

from hpc_marl.base.descriptor_limit import raise_descriptor_limit
from hpc_marl.base.early_host import Orders
from hpc_marl.control.heartbeat_relay import HeartbeatRelay
from hpc_marl.workers.nursery import Nursery, start_heavy_nursery
from hpc_marl.workers.process_identity import (
    die_with_parent,
    move_output,
    outlive_parent,
    replace_environment,
    show_command_line,
)


class WaitingHost(NamedTuple):
    """A host that has got its orders.

    Attributes:
        arguments: of `python -m hpc_marl.workers`.
        relay: for its workers' heartbeats.
        nursery: of the workers that need torch.
    """

    arguments: list[str]
    relay: HeartbeatRelay
    nursery: Nursery


def wait_for_orders(command: int) -> WaitingHost | list[str] | None:
    """Start a nursery, then wait for orders at standard input. The process must have one thread.

    Args:
        command: the process that gives them, our parent; we are killed with it until we have them.

    Returns:
        what this process is now, None where there will be no orders; in every worker's new process, the arguments
        that it was launched with.
    """
    if not die_with_parent(command, signal.SIGKILL):
        return None
    raise_descriptor_limit()  # as the command does before it trains
    relay = HeartbeatRelay()
    nursery = start_heavy_nursery(["nursery"])
    if isinstance(nursery, list):
        relay.leave_to_worker()
        return nursery
    orders = Orders.decode(sys.stdin.buffer.read())
    if orders is None:
        return None
    outlive_parent()
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    replace_environment(orders.environment)
    move_output(orders.log_file, with_earlier=False)
    show_command_line(orders.arguments)
    nursery.settle(orders)
    return WaitingHost(orders.arguments, relay, nursery)
