"""The actor worker: steps environments, asks for actions, sends whole sample batches.

Each environment group goes round the same circle, and every wait is a return to the worker loop:

    no batch --(credit; sync: newer parameters)--> filling --(T steps)--> full --(commit)--> no batch
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from hpc_marl.base import names
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.time_use import TimeUse
from hpc_marl.config import ActorAssignment, build, to_dict
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.data import EnvSpec, SampleBatch, SampleLayout
from hpc_marl.envs import make_env
from hpc_marl.errors import EnvContractError, NameEntryExistsError
from hpc_marl.policies.spec import PolicySpec
from hpc_marl.streams.sample_messages import SampleMetadata
from hpc_marl.streams.sample_sender import SampleSender
from hpc_marl.workers.acting import NO_GENERATION, Acting, Generation, InlineActing, RemoteActing
from hpc_marl.workers.batch_views import ViewCache
from hpc_marl.workers.rollout import GroupRollout

# A poll steps environments for so long; between two of them commands and flags are looked at. Where actors wait for a
# core at every step, that takes as long as several steps, so it must not come after every one.
_POLL_BUDGET_S = 0.05
_LOOK_INTERVAL_S = 0.005  # between two looks for newer parameters inside a poll
_WAIT_S = 0.05  # how long a poll waits for credit, or for newer parameters, when it has nothing else to do


@dataclass
class _Group:
    """One environment group on its way round the circle."""

    index: int
    rollout: GroupRollout
    batch: SampleBatch | None = None
    waiting: bool = False
    generation: Generation = NO_GENERATION
    """Of the last batch; a synchronous group waits for a newer one."""


class ActorWorker(Worker):
    """Steps the environments of one actor."""

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
        self._acting: Acting | None = None
        self._sender: SampleSender | None = None
        self._groups: list[_Group] = []
        self._num_filling = 0
        """Groups that have a batch."""
        self._envs: list[Any] = []
        self._receivers = 1
        self._time_use = TimeUse(
            "other", "env", "inference", "wait_inference", "write", "wait_credit", "wait_parameters"
        )

    def _configure(self, config: dict[str, Any]) -> None:
        self._config = build(ActorAssignment, config)
        actors = self._config.actors
        size = actors.num_envs // actors.num_groups
        self._envs = [make_env(self._config.env, size) for _ in range(actors.num_groups)]
        self._publish_spec(self._envs[0].spec)
        acting = InlineActing if self._config.inference == "inline" else RemoteActing
        self._acting = acting(self._context, self._config)

    def _poll(self) -> PollResult:
        acting = self._acting
        assert acting is not None, "configure() comes before start()"
        self._time_use.begin("other")
        if acting.spec is None:
            acting.poll(may_change=True)
            if acting.spec is None:
                self._time_use.begin("wait_parameters")
                return PollResult(idle=True)
        if self._sender is None:
            self._open_groups(acting.spec)
        assert self._sender is not None
        now = time.monotonic()
        deadline = next_look = now + _POLL_BUDGET_S
        steps = batches = committed = 0
        while True:
            # between batches nothing is lost by looking at the streams a few milliseconds later
            is_between = committed or steps == 0 or self._num_filling < len(self._groups)
            if is_between:
                self._sender.poll()
            if is_between or now >= next_look:
                acting.poll(may_change=self._policy_may_change())
                next_look = now + _LOOK_INTERVAL_S
            stepped, committed = self._advance(acting, self._sender)
            steps += stepped
            batches += committed
            if stepped == 0:
                if not any(group.waiting for group in self._groups):
                    self._repeat_what_was_lost(self._sender)
                    if steps == 0:
                        self._wait(acting, self._sender)
                    return PollResult(num_samples=steps, num_batches=batches)
                self._time_use.begin("wait_inference")
                acting.wait(deadline - now)
            now = time.monotonic()
            if now >= deadline:
                self._time_use.begin("other")
                return PollResult(num_samples=steps, num_batches=batches)

    def _advance(self, acting: Acting, sender: SampleSender) -> tuple[int, int]:
        """Take every group that has its answer one step on, and ask for its next; return (env_steps, batches)."""
        stepped = committed = 0
        time_use = self._time_use
        time_use.begin("write")
        acting.wait(0.0)
        for group in self._groups:
            if group.waiting:
                if (answer := acting.collect(group.index)) is None:
                    continue
                group.waiting = False
                group.rollout.apply(*answer)
                stepped += group.rollout.env.num_envs
                if group.rollout.is_full:
                    self._commit(group, sender)
                    committed += 1
            if group.batch is None and not self._begin(group, acting, sender):
                continue
            # at once, not after the other groups' steps: those are what hides how long the answer takes
            inputs = group.rollout.inputs()
            time_use.begin("inference")
            acting.submit(group.index, inputs)
            time_use.begin("write")
            group.waiting = True
        return stepped, committed

    def _wait(self, acting: Acting, sender: SampleSender) -> None:
        """Wait a little for whatever keeps all groups from beginning a batch."""
        if self._config.mode == "sync" and all(
            group.generation >= acting.generation for group in self._groups
        ):
            self._time_use.begin("wait_parameters")
            acting.wait_for_newer(_WAIT_S)
        else:
            self._time_use.begin("wait_credit")
            sender.poll(_WAIT_S)

    def _begin(self, group: _Group, acting: Acting, sender: SampleSender) -> bool:
        if self._config.mode == "sync" and acting.generation <= group.generation:
            return False
        if (batch := sender.acquire(group.index)) is None:
            return False
        group.batch, group.generation = batch, acting.generation
        self._num_filling += 1
        group.rollout.begin(batch)
        return True

    def _commit(self, group: _Group, sender: SampleSender) -> None:
        assert group.batch is not None
        batch, group.batch = group.batch, None
        self._num_filling -= 1
        counted = group.rollout.finish()
        sender.commit(
            batch,
            SampleMetadata(
                group=group.index,
                env_steps=counted.env_steps,
                agent_steps=counted.agent_steps,
                episodes=counted.episodes,
                policy_epoch=max(group.generation[0], 0),
            ),
        )

    def _repeat_what_was_lost(self, sender: SampleSender) -> None:
        """Sample the present version again for another trainer.

        A batch that was under way to the trainer before it is lost, also if it is of the new one's parameters already;
        a synchronous trainer would wait for it for ever. What it gets twice it takes once.
        """
        receivers = sender.statistics().receivers
        if receivers > self._receivers:
            self._receivers = receivers
            for group in self._groups:
                if group.batch is None:
                    group.generation = NO_GENERATION

    def _policy_may_change(self) -> bool:
        """A synchronous batch is of one policy; an asynchronous one records the version of every step."""
        return self._config.mode == "async" or self._num_filling == 0

    def _open_groups(self, spec: PolicySpec) -> None:
        config, actors = self._config, self._config.actors
        chunk = config.memory_chunk_length if spec.memory_size else 1
        layout = SampleLayout(
            spec.env, config.rollout_length, actors.num_envs // actors.num_groups, spec.memory_size, chunk
        )
        key = names.sample_stream(
            self._context.experiment_name, self._context.trial_name, config.sample_trainer
        )
        self._sender = SampleSender(
            self._context,
            key,
            self.name,
            layout,
            num_slots=config.streams.sample_slots * actors.num_groups,
            num_groups=actors.num_groups,
            epoch=config.life,
            transport=config.streams.transport,
        )
        views = ViewCache()
        for i, env in enumerate(self._envs):
            seed = (*config.seed, i)
            rollout = GroupRollout(
                env, config.env, seed, spec.memory_size, chunk, views=views, time_use=self._time_use
            )
            self._groups.append(_Group(i, rollout))

    def _publish_spec(self, spec: EnvSpec) -> None:
        """Tell the trainer what the environment looks like; the first actor's word holds, the others must agree."""
        key = names.env_spec(self._context.experiment_name, self._context.trial_name)
        text = msgspec.json.encode(to_dict(spec)).decode()
        try:
            # It must outlive this actor: a trainer may start, or start again, after the actor is gone.
            self._context.resolver.add(key, text, delete_on_exit=False)
        except NameEntryExistsError:
            if (known := self._context.resolver.get(key)) != text:
                raise EnvContractError(
                    f"this actor's environment differs from the first actor's: {text} instead of {known}"
                ) from None

    def _on_exit(self, status: WorkerStatus) -> None:
        if self._acting is not None:
            self._acting.close()
        self._acting = None
        self._groups.clear()  # both hold the sender's memory
        if self._sender is not None:
            self._sender.close()
        for env in self._envs:
            env.close()

    def _metrics(self) -> dict[str, float | int | str]:
        produced = {}
        if self._sender is not None:
            statistics = self._sender.statistics()
            produced = {
                "batches_produced": statistics.produced,
                "env_steps_produced": statistics.produced_env_steps,
            }
        return {**produced, **self._time_use.metrics()}
