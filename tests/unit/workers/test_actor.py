"""ActorWorker between two real streams, in this process: its batches are those of a loop without shortcuts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpc_marl.base import names
from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import create_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.config import ActorAssignment, ActorGroupConfig, EnvConfig, PolicyConfig, StreamConfig, to_dict
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.envs import EnvArrays, StepArrays, make_env
from hpc_marl.policies import NumpyActor, PolicySpec, actor_shapes, make_noise
from hpc_marl.streams.parameters import ParameterPublisher
from hpc_marl.streams.samples import ReceivedBatch, SampleReceiver
from hpc_marl.workers.actor import ActorWorker
from hpc_marl.workers.rollout import share_reward
from tests.unit.control.control_fakes import QueueServer, eventually

SEED, NUM_ENVS, NUM_STEPS, CHUNK = (7, 0, 0, 0), 4, 8, 4
TRIAL = ("exp", "trial")
COUNTING = {"_target_": "hpc_marl.envs.testing.CountingEnv", "length_spread": 3}


def assigned(make: dict[str, Any], mode: str, num_groups: int = 1, **changes: Any) -> ActorAssignment:
    return ActorAssignment(
        seed=SEED,
        mode=mode,
        env=EnvConfig(make=make, **changes),
        actors=ActorGroupConfig(num_envs=NUM_ENVS * num_groups, num_groups=num_groups),
        rollout_length=NUM_STEPS,
        memory_chunk_length=CHUNK,
        streams=StreamConfig(sample_slots=2),
    )


class Actor:
    """One actor, and the trainer's ends of its streams."""

    def __init__(self, path: Path, config: ActorAssignment, policy: PolicyConfig) -> None:
        self._stack = ExitStack()
        context = RunContext(*TRIAL, MemoryNameResolver(), SocketFactory(create_keyring(path / "auth")))
        self.context = context
        self._stack.callback(context.close)
        self.spec = policy_spec(config, policy)
        shapes = actor_shapes(self.spec)
        self.publisher = ParameterPublisher(
            context,
            names.parameter_stream(*TRIAL, "trainer/0"),
            shapes,
            metadata={"policy_spec": to_dict(self.spec)},
        )
        self._stack.callback(self.publisher.close)
        self.receiver = SampleReceiver(context, names.sample_stream(*TRIAL, "trainer/0"), max_bytes=2**24)
        self._stack.callback(self.receiver.close)
        self.worker = ActorWorker(QueueServer("actor/0"), context, RunDirectory(path, *TRIAL))
        self.worker._configure(to_dict(config))
        self._stack.callback(self.worker._on_exit, WorkerStatus.COMPLETED)

    def publish(self, version: int) -> None:
        self.publisher.publish(version, weights_of(self.spec, version))

    def play(self, count: int) -> list[ReceivedBatch]:
        """Let it play until so many batches more have arrived; they must be consumed."""
        taken: list[ReceivedBatch] = []
        while len(taken) < count:
            self.worker._poll()
            self.receiver.poll()
            taken += self.receiver.take(count - len(taken))
        return taken

    def seconds(self, activity: str) -> float:
        return float(self.worker._metrics()[f"time_{activity}_s"])

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Actor]]:
    with ExitStack() as stack:

        def begin(config: ActorAssignment, policy: PolicyConfig | None = None) -> Actor:
            actor = Actor(tmp_path, config, policy or PolicyConfig(hidden_sizes=(8,)))
            stack.callback(actor.close)
            return actor

        yield begin


def policy_spec(config: ActorAssignment, policy: PolicyConfig) -> PolicySpec:
    env = make_env(config.env, 1)
    env.close()
    return PolicySpec(env=env.spec, policy=policy)


def weights_of(spec: PolicySpec, version: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(version)
    return {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in actor_shapes(spec).items()}


def at(batch: SampleBatch, t: int) -> EnvArrays:
    names = [field.name for field in dataclasses.fields(EnvArrays)]
    return EnvArrays(**{n: None if getattr(batch, n) is None else getattr(batch, n)[t] for n in names})


def step_by_step(
    config: ActorAssignment, spec: PolicySpec, group: int, versions: list[int]
) -> list[SampleBatch]:
    """Play one group without shortcuts: one batch of each of the versions."""
    env_stream, noise_stream = np.random.SeedSequence([*SEED, group]).spawn(2)
    rng = np.random.Generator(np.random.PCG64(noise_stream))
    env = make_env(config.env, NUM_ENVS)
    layout = SampleLayout(env.spec, NUM_STEPS, NUM_ENVS, spec.memory_size, CHUNK if spec.memory_size else 1)
    actor, batches = NumpyActor(spec), [layout.allocate() for _ in versions]
    memory = np.zeros((NUM_ENVS, env.spec.num_agents, spec.memory_size), np.float32)
    env.reset([int(word) for word in env_stream.generate_state(NUM_ENVS)], at(batches[0], 0))
    for number, (version, batch) in enumerate(zip(versions, batches, strict=True)):
        actor.load(weights_of(spec, version), version)
        batch.policy_version[:] = version
        for name, array in vars(at(batches[number - 1], -1)).items() if number else ():
            if array is not None:
                getattr(batch, name)[0] = array
        for t in range(NUM_STEPS):
            now = at(batch, t)
            memory[now.is_first] = 0
            if batch.memory is not None and t % CHUNK == 0:
                batch.memory[t // CHUNK] = memory
            noise = make_noise(env.spec, rng, NUM_ENVS)
            result = actor.act(now.observation, now.action_mask, memory if spec.memory_size else None, noise)
            memory = memory if result.memory is None else result.memory
            batch.action[t], batch.log_prob[t] = result.action, result.log_prob
            step = StepArrays.allocate(env.spec, NUM_ENVS)
            env.step(result.action, step, at(batch, t + 1))
            batch.terminated[t], batch.truncated[t] = step.terminated, step.truncated
            batch.reward[t] = share_reward(step.reward, config.env.reward_sharing)
    env.close()
    return batches


KINDS = {
    "plain": ({**COUNTING, "num_agents": 1}, "none", "individual"),
    "masked, recurrent, early ends": (
        {**COUNTING, "masked": True, "early_steps": 1, "has_state": True},
        "gru",
        "mean",
    ),
    "continuous": ({**COUNTING, "continuous": True}, "none", "sum"),
    "gymnasium": ({"_target_": "gymnasium.make", "id": "CartPole-v1"}, "gru", "individual"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_a_loop_without_shortcuts(start: Callable[..., Actor], kind: str) -> None:
    make, recurrent, sharing = KINDS[kind]
    config = assigned(make, "sync", num_groups=2, reward_sharing=sharing)
    policy = PolicyConfig(hidden_sizes=(8,), recurrent=recurrent, memory_size=6)
    actor, versions = start(config, policy), [1, 2, 3, 4]
    expected = [step_by_step(config, actor.spec, group, versions) for group in range(2)]
    for number, version in enumerate(versions):
        actor.publish(version)
        batches = actor.play(2)
        for received in batches:
            twin = expected[received.metadata.group][number]
            for name, array in twin.arrays().items():
                np.testing.assert_array_equal(getattr(received.batch, name), array, err_msg=name)
            assert received.metadata.env_steps == twin.env_steps
            assert received.metadata.agent_steps == twin.agent_steps
        assert sorted(received.metadata.group for received in batches) == [0, 1]
        actor.receiver.consume(batches)


def test_a_synchronous_actor_waits_for_newer_parameters(start: Callable[..., Actor]) -> None:
    actor = start(assigned(COUNTING, "sync"))
    actor.worker._poll()
    assert actor.worker._metrics().get("batches_produced") is None  # there is no policy yet
    actor.publish(1)
    actor.receiver.consume(actor.play(1))
    waited = actor.seconds("wait_parameters")
    for _ in range(5):
        assert actor.worker._poll().num_samples == 0
    assert actor.receiver.poll() == 0
    assert actor.seconds("wait_parameters") > waited
    actor.publish(2)
    (batch,) = actor.play(1)
    assert (batch.batch.policy_version == 2).all()
    actor.receiver.consume([batch])


def test_an_asynchronous_actor_goes_on_until_it_has_no_credit(start: Callable[..., Actor]) -> None:
    actor = start(assigned(COUNTING, "async"))
    actor.publish(1)
    held = actor.play(2)  # as many as it has slots
    eventually(actor.worker._poll, lambda result: result.num_samples == 0)
    waited, produced = actor.seconds("wait_credit"), actor.worker._metrics()["batches_produced"]
    actor.worker._poll()
    assert actor.seconds("wait_credit") > waited
    assert actor.worker._metrics()["batches_produced"] == produced == 2
    actor.publish(2)
    actor.receiver.consume(held)
    later = actor.play(2)
    assert (later[-1].batch.policy_version == 2).all()
    actor.receiver.consume(later)


def test_its_time_is_told_by_activity(start: Callable[..., Actor]) -> None:
    actor = start(assigned(COUNTING, "async"))
    actor.publish(1)
    actor.receiver.consume(actor.play(2))
    assert all(actor.seconds(activity) > 0 for activity in ("env", "inference", "write", "other"))
