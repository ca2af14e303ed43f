"""A trial without processes: trainers in threads, and made-up actors that send what the policy would have done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hpc_marl.base import names
from hpc_marl.base.launch_record import LaunchRecord, write_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import create_keyring
from hpc_marl.config import (
    ActorGroupConfig,
    ExperimentConfig,
    PolicyConfig,
    PPOConfig,
    StreamConfig,
    TrainerGroupConfig,
    assignment,
    to_dict,
)
from hpc_marl.data import SampleLayout
from hpc_marl.streams.parameters import ParameterReader
from hpc_marl.streams.sample_messages import SampleMetadata
from hpc_marl.streams.samples import SampleSender
from hpc_marl.workers.trainer import TrainerWorker
from tests.unit.algorithms.sample_batches import make_batch, make_spec
from tests.unit.control.control_fakes import QueueServer, running

RUN_UUID = "0" * 32
SPEC = make_spec(critic="local")
NUM_STEPS, NUM_ENVS = 8, 4


def make_config(**changes: Any) -> ExperimentConfig:
    """Return a small experiment; `changes` replace whole branches."""
    settings: dict[str, Any] = {
        "total_env_steps": 10_000,
        "policy": PolicyConfig(hidden_sizes=(12,), critic_hidden_sizes=(10, 8), memory_size=6),
        "algorithm": PPOConfig(
            critic="local", rollout_length=NUM_STEPS, memory_chunk_length=4, num_minibatches=2
        ),
        "actors": ActorGroupConfig(count=1, num_envs=NUM_ENVS),
        "trainer": TrainerGroupConfig(checkpoint_interval_s=0.1),
        "streams": StreamConfig(transport="zmq"),
    }
    return ExperimentConfig(**{**settings, **changes})


class Trial:
    """One run directory, its names and keys."""

    def __init__(self, path: Path) -> None:
        self.directory = RunDirectory(path, "exp", "trial")
        self.directory.create()
        create_keyring(self.directory.auth(RUN_UUID))
        record = LaunchRecord(
            experiment_name="exp",
            trial_name="trial",
            run_uuid=RUN_UUID,
            epoch=1,
            interface=None,
            heartbeat_interval_s=0.1,
            orphan_grace_s=60.0,
        )
        write_launch_record(self.directory, record)
        self._contexts: list[RunContext] = []
        resolver = self.context().resolver
        resolver.add(names.env_spec("exp", "trial"), msgspec.json.encode(to_dict(SPEC.env)).decode())

    def context(self) -> RunContext:
        """Return the surroundings of another process of the run."""
        made = RunContext.open(self.directory, RUN_UUID, interface=None)
        self._contexts.append(made)
        return made

    @contextmanager
    def trainer(self, config: ExperimentConfig, *, epoch: int) -> Iterator[tuple[TrainerWorker, QueueServer]]:
        """Run trainer/0 in a thread, configured and started."""
        server = QueueServer("trainer/0")
        worker = TrainerWorker(server, self.context(), self.directory)
        with running(worker):
            given = assignment(config, "trainer/0", epoch=epoch, life=0, num_actors=config.actors.count)
            server.call("configure", config=given)
            server.call("start")
            yield worker, server

    def close(self) -> None:
        """Close all contexts."""
        for context in self._contexts:
            context.close()


class MadeUpActor:
    """Sends one batch of every version it sees, unless muted; again where a trainer went away with it."""

    def __init__(self, trial: Trial, index: int = 0, trainer_name: str = "trainer/0") -> None:
        context = trial.context()
        self._reader = ParameterReader(context, names.parameter_stream("exp", "trial", "trainer/0"))
        layout = SampleLayout(SPEC.env, NUM_STEPS, NUM_ENVS, 0, 1)
        key = names.sample_stream("exp", "trial", trainer_name)
        self._sender = SampleSender(context, key, f"actor/{index}", layout, num_slots=4, num_groups=1)
        self._index = index
        self.muted = False
        self._seen = (-1, -1)
        self._weights: dict[str, Any] | None = None
        self._sent: dict[str, Any] | None = None
        self._lost = 0

    def poll(self) -> None:
        """Take in a newer version and send a batch of it."""
        self._sender.poll()
        newer = self._reader.poll()
        if newer is not None and (newer.epoch, newer.policy_version) > self._seen:
            self._seen = (newer.epoch, newer.policy_version)
            self._weights = {name: np.array(array) for name, array in newer.weights.items()}
        if (lost := self._sender.statistics().lost) > self._lost:
            self._lost, self._weights = lost, self._weights or self._sent
        if self.muted or self._weights is None or (batch := self._sender.acquire(0)) is None:
            return
        epoch, version = self._seen
        made = make_batch(
            SPEC,
            self._weights,
            num_steps=NUM_STEPS,
            num_envs=NUM_ENVS,
            seed=1000 * self._index + version,
        )
        made = dataclasses.replace(made, policy_version=np.full(NUM_STEPS, version))
        for name, array in made.arrays().items():
            getattr(batch, name)[...] = array
        self._weights, self._sent = None, self._weights
        self._sender.commit(
            batch,
            SampleMetadata(
                env_steps=batch.env_steps,
                agent_steps=batch.agent_steps,
                episodes=[(1.0, 2)],
                policy_epoch=max(epoch, 0),
            ),
        )

    def close(self) -> None:
        """Say goodbye."""
        self._sender.close()
        self._reader.close()


def play(condition: Callable[[], object], *actors: MadeUpActor) -> None:
    """Let actors act until the condition holds."""
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for does not come about"
        for actor in actors:
            actor.poll()
        time.sleep(0.001)
