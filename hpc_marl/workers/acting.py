"""Acting: where an actor's actions come from. `InlineActing` and `RemoteActing` have one interface for the same actor.

    submit(group, inputs, newer_than) ... collect(group) -> ActResult | None

Both are pure functions of the inputs and the weights: the actor brings its own random numbers, so a seed gives the same
actions inline and remote.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base import names
from hpc_marl.base.run_context import RunContext
from hpc_marl.config import ActorAssignment, build
from hpc_marl.policies.numpy_actor import NumpyActor
from hpc_marl.policies.spec import ActResult, PolicySpec
from hpc_marl.streams.inference import InferenceClient
from hpc_marl.streams.parameters import ParameterReader
from hpc_marl.workers.rollout import ActInputs

Generation = tuple[int, int]
"""(epoch, policy_version): orders parameters even when a trainer restarts from an older checkpoint."""

NO_GENERATION: Generation = (-1, -1)


class Acting(ABC):
    """Answers what the groups of one actor see with actions."""

    @abstractmethod
    def poll(self, may_change: bool) -> None:
        """Take in newer parameters; only where `may_change` does the policy in use change."""

    @property
    @abstractmethod
    def generation(self) -> Generation:
        """The newest generation known to be served."""

    @property
    @abstractmethod
    def spec(self) -> PolicySpec | None:
        """What the policy looks like; None until a trainer has published."""

    @abstractmethod
    def submit(self, group: int, inputs: ActInputs) -> None:
        """Ask for the actions of one group."""

    @abstractmethod
    def collect(self, group: int, timeout_s: float) -> ActResult | None:
        """Return the group's answer, or None where it is not there after `timeout_s`."""

    @abstractmethod
    def close(self) -> None:
        """Close the streams."""


class InlineActing(Acting):
    """A copy of the policy in this process."""

    def __init__(self, context: RunContext, config: ActorAssignment) -> None:
        key = names.parameter_stream(context.experiment_name, context.trial_name, config.trainer_name)
        self._reader = ParameterReader(context, key, transport=config.streams.transport)
        self._actor: NumpyActor | None = None
        self._spec: PolicySpec | None = None
        self._generation = NO_GENERATION
        self._answers: dict[int, ActResult] = {}

    @property
    def generation(self) -> Generation:
        """The generation in use."""
        return self._generation

    @property
    def spec(self) -> PolicySpec | None:
        """What the policy looks like; None until a trainer has published."""
        return self._spec

    def poll(self, may_change: bool) -> None:
        """Load newer weights."""
        if not may_change or (newer := self._reader.poll()) is None:
            return
        if self._actor is None:
            self._spec = build(PolicySpec, self._reader.metadata["policy_spec"])
            self._actor = NumpyActor(self._spec)
        self._actor.load(newer.weights, newer.policy_version)
        self._generation = (newer.epoch, newer.policy_version)

    def submit(self, group: int, inputs: ActInputs) -> None:
        """Act at once."""
        assert self._actor is not None, "poll() until a generation is there"
        self._answers[group] = self._actor.act(
            inputs.observation, inputs.action_mask, inputs.memory, inputs.noise
        )

    def collect(self, group: int, timeout_s: float) -> ActResult | None:
        """Return the answer of `submit`."""
        return self._answers.pop(group, None)

    def close(self) -> None:
        """Close the parameter stream."""
        self._reader.close()


class RemoteActing(Acting):
    """Policy workers answer; this process holds no weights.

    The parameter stream is still watched, for the policy's shape and for the generation that a synchronous rollout must
    wait for.
    """

    def __init__(self, context: RunContext, config: ActorAssignment) -> None:
        key = names.parameter_stream(context.experiment_name, context.trial_name, config.trainer_name)
        self._reader = ParameterReader(context, key, transport=config.streams.transport)
        root = names.inference_root(context.experiment_name, context.trial_name)
        self._client = InferenceClient(
            context, root, config.index, timeout_s=config.streams.inference_timeout_s
        )
        self._spec: PolicySpec | None = None
        self._generation = NO_GENERATION

    @property
    def generation(self) -> Generation:
        """The newest generation published."""
        return self._generation

    @property
    def spec(self) -> PolicySpec | None:
        """What the policy looks like; None until a trainer has published."""
        return self._spec

    def poll(self, may_change: bool) -> None:
        """Learn of newer generations."""
        if not may_change or (newer := self._reader.poll()) is None:
            return
        if self._spec is None:
            self._spec = build(PolicySpec, self._reader.metadata["policy_spec"])
        self._generation = (newer.epoch, newer.policy_version)

    def submit(self, group: int, inputs: ActInputs) -> None:
        """Send the request; a server answers it once it has the generation known here."""
        arrays: dict[str, NDArray[Any]] = {"observation": inputs.observation, "noise": inputs.noise}
        if inputs.action_mask is not None:
            arrays["action_mask"] = inputs.action_mask
        if inputs.memory is not None:
            arrays["memory"] = inputs.memory
        self._client.submit(group, arrays, min_policy_version=stamp(self._generation))

    def collect(self, group: int, timeout_s: float) -> ActResult | None:
        """Return the answer once it is there."""
        reply = self._client.collect(group, timeout_s)
        if reply is None:
            return None
        arrays = reply.arrays
        return ActResult(
            action=arrays["action"],
            log_prob=arrays["log_prob"].astype(np.float32, copy=False),
            memory=arrays.get("memory"),
            policy_version=reply.policy_version,
        )

    def close(self) -> None:
        """Close both streams."""
        self._client.close()
        self._reader.close()


def stamp(generation: Generation) -> int:
    """Return one number that orders generations, for headers that have room for one."""
    epoch, version = generation
    return (max(epoch, 0) << 32) | max(version, 0)
