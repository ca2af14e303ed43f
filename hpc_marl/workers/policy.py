"""The policy worker: answers observations with batched actions.

Batching is dynamic and needs no timer: a forward pass takes whatever has queued up during the previous one. In sync
mode every request has a pass of its own, because the rounding of a matrix product depends on who else is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base import names
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import PolicyAssignment, build
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.policies.making import make_actor
from hpc_marl.policies.spec import ActResult, PolicySpec
from hpc_marl.streams.inference import InferenceRequest, InferenceServer
from hpc_marl.streams.parameters import ParameterReader
from hpc_marl.workers.acting import NO_GENERATION, Generation, stamp

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
        self._rows = self._passes = 0

    def _configure(self, config: dict[str, Any]) -> None:
        self._config = build(PolicyAssignment, config)
        context, trial = self._context, (self._context.experiment_name, self._context.trial_name)
        key = names.parameter_stream(*trial, self._config.trainer_name)
        self._reader = ParameterReader(context, key, transport=self._config.streams.transport)
        self._inference = InferenceServer(
            context,
            names.inference_stream(*trial, self.name),
            max_message_bytes=self._config.streams.max_message_bytes,
        )

    def _poll(self) -> PollResult:
        assert self._reader is not None and self._inference is not None
        self._take_parameters(self._reader)
        if self._actor is None:
            return PollResult(idle=True)
        waiting = self._inference.statistics().waiting > 0
        self._inference.poll(_WAIT_FOR_PARAMETERS_S if waiting else _WAIT_FOR_REQUESTS_S)
        ready = self._inference.take(self._config.max_batch_rows, stamp(self._generation))
        for batch in _batches(ready, alone=self._config.mode == "sync"):
            self._answer(self._inference, batch)
        return PollResult(num_samples=len(ready), num_batches=1 if ready else 0)

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
        result: ActResult = self._actor.act(
            _join(requests, "observation"),
            _join(requests, "action_mask"),
            _join(requests, "memory"),
            _join(requests, "noise"),
        )
        start = 0
        for request in requests:
            stop = start + request.arrays["observation"].shape[0]
            arrays = {"action": result.action[start:stop], "log_prob": result.log_prob[start:stop]}
            if result.memory is not None:
                arrays["memory"] = result.memory[start:stop]
            inference.reply(request, arrays, result.policy_version)
            start = stop
        self._rows += start
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
        }


def _batches(requests: Sequence[InferenceRequest], alone: bool) -> list[list[InferenceRequest]]:
    """Split requests into forward passes."""
    if alone:
        return [[request] for request in requests]
    return [list(requests)] if requests else []


def _join(requests: Sequence[InferenceRequest], name: str) -> NDArray[Any] | Any:
    arrays = [request.arrays[name] for request in requests if name in request.arrays]
    if not arrays:
        return None
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
