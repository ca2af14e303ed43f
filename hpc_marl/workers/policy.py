"""The policy worker: answers observations with batched actions.

Batching is dynamic and needs no timer: a forward pass takes whatever has queued up during the previous one. In sync
mode every request has a pass of its own, because the rounding of a matrix product depends on who else is in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hpc_marl.base import names
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.time_use import TimeUse
from hpc_marl.config import PolicyAssignment, build
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.policies.making import make_actor
from hpc_marl.policies.spec import ActResult, PolicySpec
from hpc_marl.streams.inference import InferenceRequest, InferenceServer, RequestJoiner
from hpc_marl.streams.parameters import ParameterReader
from hpc_marl.workers.acting import NO_GENERATION, Generation, stamp

_POLL_BUDGET_S = 0.005  # a poll answers requests for about this long, so that commands are answered soon
_WAIT_FOR_REQUESTS_S = 0.02
_WAIT_FOR_PARAMETERS_S = 0.001  # requests that need newer parameters are waiting: look again soon


class PolicyWorker(Worker):
    """Serves the newest parameters of one trainer."""

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
        self._reader: ParameterReader | None = None
        self._inference: InferenceServer | None = None
        self._actor: Any = None
        self._generation: Generation = NO_GENERATION
        self._joiner = RequestJoiner()
        self._rows = self._passes = 0
        self._time_use = TimeUse("other", "inference", "wait_requests", "reply")

    def _configure(self, config: dict[str, Any]) -> None:
        self._config = build(PolicyAssignment, config)
        context, trial = self._context, (self._context.experiment_name, self._context.trial_name)
        key = names.parameter_stream(*trial, self._config.trainer_name)
        self._reader = ParameterReader(context, key, transport=self._config.streams.transport)
        self._inference = InferenceServer(
            context,
            names.inference_stream(*trial, self.name),
            max_message_bytes=self._config.streams.max_message_bytes,
            transport=self._config.streams.transport,
        )

    def _poll(self) -> PollResult:
        assert self._reader is not None and self._inference is not None
        deadline = time.monotonic() + _POLL_BUDGET_S
        answered = passes = 0
        while True:
            self._take_parameters(self._reader)
            if self._actor is None:
                return PollResult(idle=True)
            ready = self._requests(self._inference)
            for batch in _batches(ready, alone=self._config.mode == "sync"):
                self._answer(self._inference, batch)
                passes += 1
            answered += len(ready)
            if not ready or time.monotonic() >= deadline:
                return PollResult(num_samples=answered, num_batches=passes)

    def _requests(self, inference: InferenceServer) -> list[InferenceRequest]:
        """Return what can be answered now, after a short wait where there is nothing."""
        wait_s = _WAIT_FOR_REQUESTS_S
        if inference.num_waiting:
            inference.poll()
            if ready := inference.take(self._config.max_batch_rows, stamp(self._generation)):
                return ready
            wait_s = _WAIT_FOR_PARAMETERS_S
        self._time_use.begin("wait_requests")
        inference.poll(wait_s)
        self._time_use.begin("other")
        return inference.take(self._config.max_batch_rows, stamp(self._generation))

    def _take_parameters(self, reader: ParameterReader) -> None:
        if (newer := reader.poll()) is None:
            return
        if self._actor is None:
            self._actor = self._make_actor(build(PolicySpec, reader.metadata["policy_spec"]))
        self._actor.load(newer.weights, newer.policy_version)
        self._generation = (newer.epoch, newer.policy_version)

    def _make_actor(self, spec: PolicySpec) -> Any:
        return make_actor(spec, self._config.device)

    def _answer(self, inference: InferenceServer, requests: Sequence[InferenceRequest]) -> None:
        self._time_use.begin("inference")
        inputs = self._joiner.join(requests)
        result: ActResult = self._actor.act(
            inputs["observation"], inputs.get("action_mask"), inputs.get("memory"), inputs["noise"]
        )
        self._time_use.begin("reply")
        arrays = {"action": result.action, "log_prob": result.log_prob}
        if result.memory is not None:
            arrays["memory"] = result.memory
        inference.reply(requests, arrays, result.policy_version)
        self._time_use.begin("other")
        self._rows += sum(request.layout.rows for request in requests)
        self._passes += 1

    def _on_exit(self, status: WorkerStatus) -> None:
        for stream in (self._inference, self._reader):
            if stream is not None:
                stream.close()

    def _metrics(self) -> dict[str, float | int | str]:
        return {
            "policy_version": self._generation[1],
            "rows": self._rows,
            "rows_per_pass": self._rows / max(self._passes, 1),
            **self._time_use.metrics(),
        }


def _batches(requests: Sequence[InferenceRequest], alone: bool) -> list[list[InferenceRequest]]:
    """Split requests into forward passes."""
    if alone:
        return [[request] for request in requests]
    return [list(requests)] if requests else []
