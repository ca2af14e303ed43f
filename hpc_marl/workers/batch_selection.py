"""Which of the received batches an update learns from; pure."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_marl.streams.samples import ReceivedBatch


def select_batches(
    received: Sequence[ReceivedBatch],
    *,
    count: int,
    policy_version: int,
    epoch: int,
    max_policy_lag: int,
    one_per_group: bool,
) -> tuple[list[ReceivedBatch], list[tuple[ReceivedBatch, str]]]:
    """Choose `count` batches, or none where there are not yet enough.

    The chosen ones are ordered by actor and group, so that a synchronous update does not depend on who was faster.

    Args:
        received: what has arrived, oldest first.
        count: batches of one update.
        policy_version: the trainer's version.
        epoch: the trainer's epoch; batches of parameters of another epoch are fenced off.
        max_policy_lag: most versions that the oldest step of a batch may be behind.
        one_per_group: take at most one batch of each environment group: a replaced actor may repeat its predecessor's.

    Returns:
        The chosen batches, and those to drop now with the reason.
    """
    late: list[tuple[ReceivedBatch, str]] = []
    fresh: list[ReceivedBatch] = []
    groups: set[tuple[str, int]] = set()
    for batch in received:
        group = (batch.worker_name, batch.metadata.group)
        if batch.metadata.policy_epoch != epoch:
            late.append((batch, "fenced"))
        elif policy_version - int(batch.batch.policy_version.min()) > max_policy_lag:
            late.append((batch, "stale"))
        elif one_per_group and group in groups:
            late.append((batch, "superseded"))
        else:
            groups.add(group)
            fresh.append(batch)
    if len(fresh) < count:
        return [], late
    return sorted(fresh[:count], key=_position), late


def _position(batch: ReceivedBatch) -> tuple[int, int, int]:
    return int(batch.worker_name.rpartition("/")[2]), batch.metadata.group, batch.seq
