"""The trainer worker: sample batches in, parameters out.

    waiting for the environment's shape -> collecting batches -> update -> publish -> collecting ... -> completed

Backpressure: the receiver's byte credits are the only queue; while an update runs, actors fill what credit they have
and then wait. Publishing and checkpoint writing never make the update wait.

Several trainers learn one policy together: each collects from actors of its own; when all have what an update takes
(`Gang`), all take it, with one mean gradient (`Ranks`). They stay copies of each other, so trainer/0 alone publishes
and writes, and what it writes accounts for the batches of all.

A trainer whose epoch is over (`EpochFence`) ends INTERRUPTED and leaves nothing behind that its successor also writes.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import msgspec

from hpc_marl.base import names
from hpc_marl.base.epoch_fence import EpochFence
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.time_use import DEVICE_METRIC, TimeUse
from hpc_marl.config import TrainerAssignment, build, to_dict
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.data import EnvSpec
from hpc_marl.errors import NameEntryNotFoundError, WorkerError
from hpc_marl.policies.spec import PolicySpec
from hpc_marl.streams.ledger import Ledger
from hpc_marl.streams.parameters import ParameterPublisher
from hpc_marl.streams.samples import SampleReceiver
from hpc_marl.workers.memory_check import check_fits_memory
from hpc_marl.workers.progress import ProgressMeter
from hpc_marl.workers.trainer_files import TrainerFiles, saved_training
from hpc_marl.workers.trainer_gang import Gang, make_gang
from hpc_marl.workers.trainer_intake import Intake
from hpc_marl.workers.trainer_words import AllLedgers, Word, deal_ledgers

_log = logging.getLogger(__name__)

_WAIT_FOR_SAMPLES_S = 0.02
_WAIT_FOR_TRAINERS_S = 0.005
_FENCE_INTERVAL_S = (
    0.5  # a row of metrics or a version too many does no harm; checkpoints are fenced without delay
)
_REPORT_TIMEOUT_S = 3.0


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
        self._gang: Gang | None = None
        self._ranks: Any = None  # hpc_marl.algorithms.ranks.Ranks; torch loads only once the trainer has work
        self._algorithm: Any = None  # hpc_marl.algorithms.PPO
        self._publisher: ParameterPublisher | None = None
        self._receiver: SampleReceiver | None = None
        self._ledgers: AllLedgers | None = None
        self._files: TrainerFiles | None = None
        """Of trainer/0 alone."""
        self._policy_version = 0
        self._intake: Intake | None = None
        self._progress = ProgressMeter()
        self._time_use = TimeUse("other", "learn", "wait_data", "wait_trainers", "publish", "checkpoint")
        self._device_s = 0.0
        self._has_reported = False
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
        if self._files is None:
            raise WorkerError(f"{self.name} has no checkpoint to write: trainer/0 does, once it has begun")
        self._write_checkpoint(self._files, wait=True)
        return str(self._files.newest_checkpoint)

    def _poll(self) -> PollResult:
        if self._is_replaced(_FENCE_INTERVAL_S):
            return self._end_replaced()
        if self._algorithm is None and not self._open():
            return PollResult(idle=True)
        assert self._gang is not None
        if self._progress.env_steps >= self._config.total_env_steps:
            return self._complete()
        if self._gang.is_over:
            if self._config.rank:
                self._report_ledger()
            return PollResult(idle=True)
        is_ready = self._collect()
        self._time_use.begin("wait_trainers" if is_ready else "other")
        if self._gang.agree(is_ready, _WAIT_FOR_TRAINERS_S):
            return self._update()
        return PollResult()

    def _look_around(self, silence_s: float) -> None:
        """Keep what was promised to the other trainers, also while paused."""
        if self._gang is None or self._status is WorkerStatus.RUNNING:
            return
        if self._gang.listen() and self._gang.agree(True):
            self._keep_promise()
        if self._gang.is_over and self._config.rank and self._receiver is not None:
            self._report_ledger()
        if self._status is WorkerStatus.COMPLETED and self._receiver is not None:
            self._receiver.poll(0.0)  # actors that leave wait for a farewell

    def _keep_promise(self) -> None:
        if self._intake is not None and self._intake.is_ready:
            self._update()
        else:
            self._begin()

    def _collect(self) -> bool:
        """Take in samples; return whether it is chosen what the next update learns from."""
        assert self._intake is not None
        if not self._intake.is_ready:
            self._time_use.begin("wait_data")
        self._intake.poll(0.0 if self._intake.is_ready else _WAIT_FOR_SAMPLES_S)
        self._time_use.begin("other")
        self._intake.choose(self._batches_per_update, self._policy_version)
        return self._intake.is_ready

    def _collect_ahead(self) -> None:
        """Called while a GPU learns: what the next update learns from may go there already."""
        if self._config.mode == "async" and self._intake is not None:
            self._intake.poll(0.0)
            self._intake.choose(self._batches_per_update, self._policy_version + 1)

    def _update(self) -> PollResult:
        assert self._receiver is not None and self._ledgers is not None and self._intake is not None
        self._time_use.begin("other")
        chosen, batch = self._intake.take()
        if has_copy := self._algorithm.copies_batches:
            self._receiver.consume(chosen)  # actors may write there again while this is learned from
        agent_steps, lag = batch.agent_steps, float(self._policy_version - batch.policy_version.mean())
        self._time_use.begin("learn")
        learned = self._algorithm.update(batch, self._progress.env_steps)
        self._device_s += learned.get("device_s", 0.0)
        self._time_use.begin("publish")
        is_replaced = self._is_replaced(_FENCE_INTERVAL_S)
        self._policy_version += 1
        if self._publisher is not None and not is_replaced:
            self._publisher.publish(self._policy_version, self._algorithm.actor_weights())
        self._time_use.begin("other")
        if not has_copy:
            self._receiver.consume(chosen)
        samples = [received.metadata for received in chosen]
        words = self._ranks.gather(self._ledgers.word(samples, lag=lag, is_replaced=is_replaced))
        self._ledgers.take(words)
        if any(word.is_replaced for word in words):
            return self._end_replaced()
        self._count(words, learned)
        return PollResult(num_samples=agent_steps, num_batches=len(chosen))

    def _count(self, words: list[Word], learned: dict[str, float]) -> None:
        """Count what all trainers have learned from; trainer/0 writes it down."""
        samples = [sample for word in words for sample in word.samples]
        lag = sum(word.policy_lag for word in words) / len(words)
        self._progress.count(samples, self._policy_version, lag)
        if self._files is None:
            return
        self._files.write_row({**self._progress.row(), **learned})
        if self._files.is_checkpoint_due:
            self._write_checkpoint(self._files, wait=False)

    def _open(self) -> bool:
        """Build what depends on the environment's shape, once an actor has published it and all trainers are there."""
        context, config = self._context, self._config
        if self._gang is None:
            try:
                text = context.resolver.get(names.env_spec(context.experiment_name, context.trial_name))
            except NameEntryNotFoundError:
                return False
            env_spec = build(EnvSpec, msgspec.json.decode(text))
            self._spec = PolicySpec(env=env_spec, policy=config.policy, critic=config.algorithm.critic)
            if config.trainer.device == "cpu":
                check_fits_memory(self._spec)
            from hpc_marl.algorithms import algorithm_class

            self._algorithm_class = algorithm_class(config.algorithm.name)
            self._gang = make_gang(
                context, epoch=config.epoch, rank=config.rank, world_size=config.world_size
            )
            if self._is_replaced(
                0.0
            ):  # loading torch takes a while; a zombie must not take its successor's names
                self._end_replaced()
                return False
        if not self._gang.agree(True, _WAIT_FOR_TRAINERS_S):
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        config = self._config
        self._ranks = self._join()
        self._algorithm = self._algorithm_class(
            config.algorithm,
            self._spec,
            total_env_steps=config.total_env_steps,
            mode=config.mode,
            device=config.trainer.device,
            precision=config.trainer.precision,
            cuda_graph=config.trainer.cuda_graph,
            seed=config.seed,
            num_threads=config.trainer.cpus,
            ranks=self._ranks,
            meanwhile=self._collect_ahead,
        )
        ledgers = self._restore()
        if config.rank == 0:
            self._files = TrainerFiles(self._run_directory, config, self._spec, self._fence)
        self._open_streams(ledgers[config.rank])
        assert self._receiver is not None
        self._intake = Intake(self._receiver, self._algorithm, config)
        self._ledgers = AllLedgers(self._receiver.ledger, ledgers, config.rank)

    def _join(self) -> Any:
        from hpc_marl.algorithms.ranks import Ranks

        config = self._config
        if config.world_size == 1:
            return Ranks()
        from hpc_marl.workers.rendezvous import join

        return join(
            self._context,
            epoch=config.epoch,
            rank=config.rank,
            world_size=config.world_size,
            device=config.trainer.device,
        )

    def _open_streams(self, ledger: Ledger) -> None:
        context, config = self._context, self._config
        if config.rank == 0:
            weights = self._algorithm.actor_weights()
            self._publisher = ParameterPublisher(
                context,
                names.parameter_stream(context.experiment_name, context.trial_name, self.name),
                {name: array.shape for name, array in weights.items()},
                metadata={"policy_spec": to_dict(self._spec)},
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

    def _restore(self) -> list[Ledger]:
        """Go on from the newest checkpoint, which trainer/0 reads for all; return the ledger of each trainer."""
        saved = self._ranks.broadcast(saved_training(self._run_directory) if self._config.rank == 0 else None)
        if saved is None:
            return [Ledger() for _ in range(self._config.world_size)]
        state = saved["state"]
        self._algorithm.load_state_dict(saved["tensors"], state["algorithm"])
        self._policy_version = saved["step"]
        self._progress = ProgressMeter.restored(state["progress"])
        return deal_ledgers(state["ledgers"], self._config.world_size)

    def _write_checkpoint(self, files: TrainerFiles, *, wait: bool) -> None:
        assert self._ledgers is not None
        self._time_use.begin("checkpoint")
        files.write_checkpoint(
            self._policy_version, self._algorithm, self._progress, self._ledgers, wait=wait
        )
        self._time_use.begin("other")

    def _complete(self) -> PollResult:
        assert self._intake is not None
        self._intake.drop_rest()
        if self._files is not None:
            self._write_checkpoint(self._files, wait=True)
        return PollResult(completed=True)

    def _report_ledger(self) -> None:
        """Tell trainer/0, which leaves the trial's ledger, what became of this one's batches."""
        assert self._gang is not None and self._receiver is not None and self._intake is not None
        if not self._has_reported:
            self._has_reported = True
            self._intake.drop_rest()
            self._gang.report(self._receiver.ledger.to_dict())

    def _on_exit(self, status: WorkerStatus) -> None:
        with ExitStack() as stack:
            if self._ranks is not None:
                stack.callback(self._ranks.close, in_order=status is not WorkerStatus.ERROR)
            for end in (self._gang, self._files, self._receiver, self._publisher):
                if end is not None:
                    stack.callback(end.close)
            if self._gang is not None and status is not WorkerStatus.ERROR:
                while self._gang.leave() and self._gang.agree(True):
                    self._keep_promise()
            if self._ledgers is not None:
                self._close_books(status)

    def _close_books(self, status: WorkerStatus) -> None:
        assert self._gang is not None and self._ledgers is not None and self._intake is not None
        if self._config.rank:
            self._report_ledger()
            return
        self._intake.drop_rest()
        assert self._files is not None
        is_well = status is not WorkerStatus.ERROR and not self._is_replaced(0.0)
        self._ledgers.take_last(self._gang.reports(_REPORT_TIMEOUT_S if is_well else 0.0))
        # what failed in mid-update must not become the newest checkpoint
        if is_well:
            self._write_checkpoint(self._files, wait=True)
        self._files.close_checkpoints()
        if not self._is_replaced(0.0):
            self._files.write_ledger(self._ledgers)

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
        if self._algorithm is None:
            return {}  # what a life before had reached is not known yet
        metrics = {**self._progress.summary(), **self._time_use.metrics()}
        metrics["policy_version"] = self._policy_version
        if self._device_s:
            metrics[DEVICE_METRIC] = self._device_s
        if self._ledgers is not None:
            produced, consumed, dropped = self._ledgers.counts()
            metrics["batches_produced"] = produced
            metrics["batches_consumed"] = consumed
            metrics["batches_dropped"] = dropped
        if self._files is not None and self._files.newest_checkpoint is not None:
            metrics["checkpoint"] = str(self._files.newest_checkpoint)
        return metrics
