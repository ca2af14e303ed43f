"""Acting: where an actor's actions come from. `InlineActing` and `RemoteActing` have one interface for the same actor.

    submit(group, inputs) ... collect(group) -> ActResult | None

Both are pure functions of the inputs and the weights: the actor brings its own random numbers, so a seed gives the same
actions inline and remote.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import Any

from numpy.typing import NDArray

from hpc_marl.base import names
from hpc_marl.base.run_context import RunContext
from hpc_marl.config import ActorAssignment, build
from hpc_marl.policies.making import PolicyActor, make_actor
from hpc_marl.policies.spec import ActResult, PolicySpec
from hpc_marl.streams.inference import InferenceClient, policy_layout
from hpc_marl.streams.parameters import ParameterReader, ParameterSet
from hpc_marl.workers.batch_views import ActInputs

_log = logging.getLogger(__name__)

Generation = tuple[int, int]
"""(epoch, policy_version): orders parameters even when a trainer restarts from an older checkpoint."""

NO_GENERATION: Generation = (-1, -1)
_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.0001, 0.001  # between two looks for newer parameters
# What has been waited for long is late by a sixteenth at most: many actors that look all the time hold up the trainer.
_NAP_SHARE, _LONGEST_LATE_NAP_S = 1 / 16, 0.005


class Acting(ABC):
    """Answers what the groups of one actor see with actions; follows the trainer's parameters.

    Attributes:
        generation: the newest generation in use, or known to be served.
        spec: what the policy looks like; None until a trainer has published.
    """

    def __init__(self, context: RunContext, config: ActorAssignment) -> None:
        key = names.parameter_stream(context.experiment_name, context.trial_name, config.trainer_name)
        self._reader = ParameterReader(context, key, transport=config.streams.transport)
        self.generation = NO_GENERATION
        self.spec: PolicySpec | None = None

    def poll(self, may_change: bool) -> None:
        """Take in newer parameters; only where `may_change` does the policy in use change."""
        if not may_change or (newer := self._reader.poll()) is None:
            return
        if self.spec is None:
            self.spec = build(PolicySpec, self._reader.metadata["policy_spec"])
            _log.info("acts from policy version %d on", newer.policy_version)
        self._load(self.spec, newer)
        self.generation = (newer.epoch, newer.policy_version)

    def wait_for_newer(self, timeout_s: float) -> None:
        """Take in newer parameters as soon as they are there; give up after `timeout_s`."""
        known, started_s, nap_s = self.generation, time.monotonic(), _SHORTEST_NAP_S
        while True:
            self.poll(may_change=True)
            waited_s = time.monotonic() - started_s
            if self.generation != known or waited_s >= timeout_s:
                return
            time.sleep(min(nap_s, timeout_s - waited_s))
            longest_s = max(_LONGEST_NAP_S, min(_NAP_SHARE * waited_s, _LONGEST_LATE_NAP_S))
            nap_s = min(2 * nap_s, longest_s)

    @abstractmethod
    def _load(self, spec: PolicySpec, newer: ParameterSet) -> None:
        """Use newer parameters from now on."""

    @abstractmethod
    def submit(self, group: int, inputs: ActInputs) -> None:
        """Ask for the actions of one group."""

    def wait(self, timeout_s: float) -> None:  # noqa: B027 - inline answers are there at once
        """Return once any group has its answer, after `timeout_s` at the latest."""

    @abstractmethod
    def collect(self, group: int) -> ActResult | None:
        """Return the group's answer, None where `wait` has not heard of it yet."""

    def close(self) -> None:
        """Close the streams."""
        self._reader.close()


class InlineActing(Acting):
    """A copy of the policy in this process."""

    def __init__(self, context: RunContext, config: ActorAssignment) -> None:
        super().__init__(context, config)
        self._actor: PolicyActor | None = None
        self._answers: dict[int, ActResult] = {}

    def _load(self, spec: PolicySpec, newer: ParameterSet) -> None:
        if self._actor is None:
            self._actor = make_actor(spec)
        self._actor.load(newer.weights, newer.policy_version)

    def submit(self, group: int, inputs: ActInputs) -> None:
        """Act at once, and write the answer where it belongs."""
        actor = self._actor
        assert actor is not None, "poll() until a generation is there"
        actor.act_rows(inputs.rows)
        self._answers[group] = ActResult(inputs.action, inputs.log_prob, inputs.memory, actor.policy_version)

    def collect(self, group: int) -> ActResult | None:
        """Return the answer of `submit`."""
        return self._answers.pop(group, None)


class RemoteActing(Acting):
    """Policy workers answer; this process uses no weights.

    The parameter stream is still followed, for the policy's shape and for the generation that a synchronous rollout
    must wait for.
    """

    def __init__(self, context: RunContext, config: ActorAssignment) -> None:
        super().__init__(context, config)
        self._context, self._config = context, config
        self._client: InferenceClient | None = None

    def _load(self, spec: PolicySpec, newer: ParameterSet) -> None:
        """Nothing to load: the shape and the generation are all that matters."""
        if self._client is not None:
            return
        actors, streams = self._config.actors, self._config.streams
        self._client = InferenceClient(
            self._context,
            names.inference_root(self._context.experiment_name, self._context.trial_name),
            self._config.index,
            policy_layout(spec.env, actors.num_envs // actors.num_groups, spec.memory_size),
            num_groups=actors.num_groups,
            timeout_s=streams.inference_timeout_s,
            transport=streams.transport,
        )

    def submit(self, group: int, inputs: ActInputs) -> None:
        """Send the request; a server answers it once it has the generation known here."""
        arrays: dict[str, NDArray[Any]] = {"observation": inputs.observation, "noise": inputs.noise}
        if inputs.action_mask is not None:
            arrays["action_mask"] = inputs.action_mask
        if inputs.memory is not None:
            arrays["memory"] = inputs.memory
        self._running().submit(group, arrays, min_policy_version=stamp(self.generation))

    def wait(self, timeout_s: float) -> None:
        """Return once any group has its answer, after `timeout_s` at the latest."""
        self._running().wait(timeout_s)

    def collect(self, group: int) -> ActResult | None:
        """Return the answer once `wait` has heard of it; valid until the next call."""
        reply = self._running().take(group)
        if reply is None:
            return None
        arrays = reply.arrays
        return ActResult(arrays["action"], arrays["log_prob"], arrays.get("memory"), reply.policy_version)

    def close(self) -> None:
        """Close both streams."""
        if self._client is not None:
            self._client.close()
        super().close()

    def _running(self) -> InferenceClient:
        assert self._client is not None, "poll() until a generation is there"
        return self._client


def stamp(generation: Generation) -> int:
    """Return one number that orders generations, for headers that have room for one."""
    epoch, version = generation
    return (max(epoch, 0) << 32) | max(version, 0)
