"""Intake: sample batches from the receiver to what the next update learns from."""

from __future__ import annotations

import logging
from typing import Any

from hpc_marl.config import TrainerAssignment
from hpc_marl.data import SampleBatch
from hpc_marl.streams.samples import ReceivedBatch, SampleReceiver
from hpc_marl.workers.batch_selection import select_batches

_log = logging.getLogger(__name__)


class Intake:
    """The batches of one trainer between their arrival and their update.

    Args:
        receiver: where they come from.
        algorithm: with `stage(batches)`, as PPO has.
        config: the trainer's part of the experiment.
    """

    def __init__(self, receiver: SampleReceiver, algorithm: Any, config: TrainerAssignment) -> None:
        self._receiver, self._algorithm, self._config = receiver, algorithm, config
        self._received: list[ReceivedBatch] = []
        self._chosen: list[ReceivedBatch] = []
        self._staged: SampleBatch | None = None
        self._warned_full = False

    @property
    def is_ready(self) -> bool:
        """Whether it is chosen what the next update learns from; other trainers may count on it."""
        return bool(self._chosen)

    def poll(self, timeout_s: float) -> None:
        """Take in what has arrived, after a wait where nothing has."""
        self._receiver.poll(timeout_s)
        self._received.extend(self._receiver.take())

    def choose(self, count: int, policy_version: int) -> None:
        """Choose and stage what the next update learns from, if that is not done and there is enough.

        Args:
            count: batches of the update.
            policy_version: the newest one when it begins.
        """
        if self._chosen:
            return
        is_sync = self._config.mode == "sync"
        chosen, late = select_batches(
            self._received,
            count=count,
            policy_version=policy_version,
            epoch=self._config.epoch,
            max_policy_lag=0 if is_sync else self._config.algorithm.max_policy_lag,
            one_per_group=is_sync,
        )
        for batch, reason in late:
            self._receiver.drop([batch], reason)
        taken = {id(batch) for batch in (*chosen, *(batch for batch, _ in late))}
        self._received = [batch for batch in self._received if id(batch) not in taken]
        if chosen:
            self._staged = self._algorithm.stage([received.batch for received in chosen])
        elif self._receiver.is_full and not late and not self._warned_full:
            self._warned_full = True
            _log.warning(
                "%d batches are here, an update takes %d, and no actor may send more: if this lasts, raise "
                "streams.sample_buffer_bytes or streams.sample_slots",
                len(self._received),
                count,
            )
        self._chosen = chosen

    def take(self) -> tuple[list[ReceivedBatch], SampleBatch]:
        """Hand over what was chosen, to be consumed, and the same as one batch."""
        chosen, staged = self._chosen, self._staged
        assert staged is not None, "nothing is chosen"
        self._chosen, self._staged = [], None
        return chosen, staged

    def drop_rest(self) -> None:
        """Account for what will not be learned from any more."""
        self.poll(0.0)
        self._receiver.drop([*self._received, *self._chosen], "shutdown")
        self._received, self._chosen, self._staged = [], [], None
