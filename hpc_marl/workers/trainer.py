"""The trainer worker: sample batches in, parameters out.

    waiting for the environment's shape -> collecting batches -> update -> publish -> collecting ... -> completed

Backpressure: the receiver's byte credits are the only queue; while an update runs, actors fill what credit they have
and then wait. Publishing and checkpoint writing never make the update wait.

A trainer whose epoch is over (`EpochFence`) ends INTERRUPTED and leaves nothing behind that its successor also writes.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import msgspec

from hpc_marl.base import names
from hpc_marl.base.checkpoint_writer import CheckpointWriter
from hpc_marl.base.checkpoints import latest_checkpoint
from hpc_marl.base.epoch_fence import EpochFence
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.base.telemetry import MetricsWriter
from hpc_marl.config import TrainerAssignment, build, to_dict
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.data import EnvSpec, concatenate
from hpc_marl.errors import NameEntryNotFoundError
from hpc_marl.policies.spec import PolicySpec
from hpc_marl.streams.ledger import Ledger
from hpc_marl.streams.parameters import ParameterPublisher
from hpc_marl.streams.samples import ReceivedBatch, SampleReceiver
from hpc_marl.workers.batch_selection import select_batches
from hpc_marl.workers.progress import ProgressMeter

_log = logging.getLogger(__name__)

_WAIT_FOR_SAMPLES_S = 0.02
_FENCE_INTERVAL_S = (
    0.5  # a row of metrics or a version too many does no harm; checkpoints are fenced without delay
)


class TrainerWorker(Worker):
    """Updates the policy of one team."""

    def __init__(
        self,
        server: WorkerServer,
        context: RunContext,
        run_directory: RunDirectory,
        *,
        orphan_grace_s: float | None = None,
    ) -> None:
        super().__init__(server, orphan_grace_s=orphan_grace_s)
        self._context = context
        self._run_directory = run_directory
        self._algorithm: Any = None  # hpc_marl.algorithms.PPO; torch loads only once the trainer has work
        self._publisher: ParameterPublisher | None = None
        self._receiver: SampleReceiver | None = None
        self._metrics_writer: MetricsWriter | None = None
        self._checkpoint_writer: CheckpointWriter | None = None
        self._policy_version = 0
        self._received: list[ReceivedBatch] = []
        self._progress = ProgressMeter()
        self._last_checkpoint_s = time.monotonic()
        self._warned_full = False
        server.register_handler("checkpoint", self.checkpoint)

    def _configure(self, config: dict[str, Any]) -> None:
        self._config = build(TrainerAssignment, config)
        self._batches_per_update = self._config.batches_per_update
        self._fence = EpochFence(self._run_directory.epoch_file, self._config.epoch)

    def _reconfigure(self, *, batches_per_update: int, gone: str = "") -> None:
        """An actor was given up: expect fewer batches, and none of incarnation `gone`."""
        self._batches_per_update = batches_per_update
        if gone and self._receiver is not None:
            self._receiver.forget(gone)

    def checkpoint(self) -> str:
        """RPC command: write a checkpoint now; return its path."""
        self._fence.require()
        self._write_checkpoint(wait=True)
        assert self._checkpoint_writer is not None
        return str(self._checkpoint_writer.last_path)

    def _poll(self) -> PollResult:
        if self._is_replaced(_FENCE_INTERVAL_S):
            return self._end_replaced()
        if self._algorithm is None and not self._open():
            return PollResult(idle=True)
        assert self._receiver is not None
        if self._progress.env_steps >= self._config.total_env_steps:
            return self._complete()
        self._receiver.poll(_WAIT_FOR_SAMPLES_S)
        self._received.extend(self._receiver.take())
        chosen, late = select_batches(
            self._received,
            count=self._batches_per_update,
            policy_version=self._policy_version,
            epoch=self._config.epoch,
            max_policy_lag=0 if self._config.mode == "sync" else self._config.algorithm.max_policy_lag,
            one_per_group=self._config.mode == "sync",
        )
        for batch, reason in late:
            self._receiver.drop([batch], reason)
        taken = {id(batch) for batch in (*chosen, *(batch for batch, _ in late))}
        self._received = [batch for batch in self._received if id(batch) not in taken]
        if chosen:
            return self._update(chosen)
        if self._receiver.is_full and not late and not self._warned_full:
            self._warned_full = True
            _log.warning(
                "%d batches are here, an update takes %d, and no actor may send more: if this lasts, raise "
                "streams.sample_buffer_bytes or streams.sample_slots",
                len(self._received),
                self._batches_per_update,
            )
        return PollResult()

    def _update(self, chosen: list[ReceivedBatch]) -> PollResult:
        assert self._publisher is not None and self._receiver is not None and self._metrics_writer is not None
        batch = concatenate([received.batch for received in chosen])
        lag = self._policy_version - batch.policy_version.mean()
        learned = self._algorithm.update(batch, self._progress.env_steps)
        if self._is_replaced(_FENCE_INTERVAL_S):
            return self._end_replaced()
        self._policy_version += 1
        self._publisher.publish(self._policy_version, self._algorithm.actor_weights())
        self._progress.count(chosen, self._policy_version, float(lag))
        self._receiver.consume(chosen)
        self._metrics_writer.write({**self._progress.row(), **learned})
        if time.monotonic() - self._last_checkpoint_s >= self._config.trainer.checkpoint_interval_s:
            self._write_checkpoint(wait=False)
        return PollResult(num_samples=batch.agent_steps, num_batches=len(chosen))

    def _open(self) -> bool:
        """Build what depends on the environment's shape, once an actor has published it."""
        context, config = self._context, self._config
        try:
            text = context.resolver.get(names.env_spec(context.experiment_name, context.trial_name))
        except NameEntryNotFoundError:
            return False
        env_spec = build(EnvSpec, msgspec.json.decode(text))
        spec = self._spec = PolicySpec(env=env_spec, policy=config.policy, critic=config.algorithm.critic)
        from hpc_marl.algorithms import algorithm_class

        self._algorithm = algorithm_class(config.algorithm.name)(
            config.algorithm,
            spec,
            total_env_steps=config.total_env_steps,
            mode=config.mode,
            device=config.trainer.device,
            seed=config.seed,
            num_threads=config.trainer.cpus,
        )
        ledger = self._restore()
        self._metrics_writer = MetricsWriter(self._run_directory.metrics)
        self._checkpoint_writer = CheckpointWriter(
            self._run_directory.checkpoints,
            epoch=config.epoch,
            keep=config.trainer.keep_checkpoints,
            fence=self._fence,
        )
        self._open_streams(spec, ledger)
        return True

    def _open_streams(self, spec: PolicySpec, ledger: Ledger) -> None:
        context, config = self._context, self._config
        weights = self._algorithm.actor_weights()
        self._publisher = ParameterPublisher(
            context,
            names.parameter_stream(context.experiment_name, context.trial_name, self.name),
            {name: array.shape for name, array in weights.items()},
            metadata={"policy_spec": to_dict(spec)},
            epoch=config.epoch,
            transport=config.streams.transport,
        )
        self._publisher.publish(self._policy_version, weights)
        self._receiver = SampleReceiver(
            context,
            names.sample_stream(context.experiment_name, context.trial_name, self.name),
            max_bytes=config.streams.sample_buffer_bytes,
            transport=config.streams.transport,
            epoch=config.epoch,
            ledger=ledger,
            max_message_bytes=config.streams.max_message_bytes,
        )

    def _restore(self) -> Ledger:
        found = latest_checkpoint(self._run_directory.checkpoints)
        if found is None:
            return Ledger()
        self._algorithm.load_state_dict(
            {"model": found.tensors("model"), "optim": found.tensors("optim")}, found.state["algorithm"]
        )
        self._policy_version = found.step
        self._progress = ProgressMeter.restored(found.state["progress"])
        return Ledger.from_dict(found.state["ledger"])

    def _write_checkpoint(self, wait: bool) -> None:
        assert self._checkpoint_writer is not None and self._receiver is not None
        tensors, scalars = self._algorithm.state_dict()
        state = {
            "algorithm": scalars,
            "policy_spec": to_dict(self._spec),
            "progress": self._progress.to_dict(),
            "ledger": self._receiver.ledger.to_dict(),
            "total_env_steps": self._config.total_env_steps,
        }
        self._checkpoint_writer.submit(self._policy_version, tensors, state)
        self._last_checkpoint_s = time.monotonic()
        if wait:
            self._checkpoint_writer.wait()

    def _complete(self) -> PollResult:
        self._drop_rest()
        self._write_checkpoint(wait=True)
        return PollResult(completed=True)

    def _drop_rest(self) -> None:
        """Account for what will not be learned from any more."""
        assert self._receiver is not None
        self._receiver.poll(0.0)
        self._received.extend(self._receiver.take())
        self._receiver.drop(self._received, "shutdown")
        self._received = []

    def _write_ledger(self) -> None:
        """Leave state/ledger.json: what became of every batch of the trial."""
        assert self._receiver is not None
        totals = self._receiver.ledger.balance()
        plain = {**vars(totals), "dropped": dict(totals.dropped)}
        atomic_write(self._run_directory.ledger_file, json.dumps(plain, indent=1).encode())

    def _on_exit(self, status: WorkerStatus) -> None:
        if self._receiver is not None and self._checkpoint_writer is not None:
            self._drop_rest()
            # what failed in mid-update must not become the newest checkpoint
            if status is not WorkerStatus.ERROR and not self._is_replaced(0.0):
                self._write_checkpoint(wait=True)
            self._checkpoint_writer.close()
            if not self._is_replaced(0.0):
                self._write_ledger()
        for stream in (self._publisher, self._receiver, self._metrics_writer):
            if stream is not None:
                stream.close()

    def _is_replaced(self, max_age_s: float) -> bool:
        """Whether a newer epoch has begun; no, where the disk does not answer: nothing can be written then either."""
        try:
            return not self._fence.holds(max_age_s)
        except OSError as error:
            _log.warning("cannot read the trainers' epoch now: %s", error)
            return False

    def _end_replaced(self) -> PollResult:
        self.request_exit()
        return PollResult(idle=True)

    def _metrics(self) -> dict[str, float | int | str]:
        metrics = self._progress.summary()
        metrics["policy_version"] = self._policy_version
        if self._receiver is not None:
            totals = self._receiver.ledger.balance()
            metrics["batches_produced"] = totals.produced
            metrics["batches_consumed"] = totals.consumed
            metrics["batches_dropped"] = totals.dropped_total
        if self._checkpoint_writer is not None and self._checkpoint_writer.last_path is not None:
            metrics["checkpoint"] = str(self._checkpoint_writer.last_path)
        return metrics
