"""A real ActorWorker in this process, with a trainer's two streams and environments that cost nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base import names, time_use
from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import create_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.config import ActorAssignment, ActorGroupConfig, EnvConfig, PolicyConfig, to_dict
from hpc_marl.control.worker_control import ZmqServer
from hpc_marl.data import EnvSpec
from hpc_marl.envs import make_env
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.policies.spec import PolicySpec, actor_shapes
from hpc_marl.streams.parameters import ParameterPublisher
from hpc_marl.streams.samples import SampleReceiver
from hpc_marl.workers.actor import ActorWorker

ROLLOUT_LENGTH = 128
_MAX_START_S = 20.0


class FreeEnv(BatchedEnv):
    """Costs next to nothing: shows the same numbers for ever, and writes nothing that is there already."""

    def __init__(self, num_envs: int, **spec: Any) -> None:
        """Choose the shapes, as fields of an EnvSpec; agents are counted by `num_agents`."""
        agents = tuple(f"agent_{n}" for n in range(spec.pop("num_agents", 1)))
        self.spec, self.num_envs = EnvSpec(agent_names=agents, **spec), num_envs
        shape = (num_envs, len(agents), self.spec.observation_size)
        self._observation = np.random.default_rng(0).standard_normal(shape, np.float32)

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Show it."""
        self._write(out)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Show it again: in the first batches; after these it is there already."""
        if not out.alive[0, 0]:
            self._write(out)

    def _write(self, out: EnvArrays) -> None:
        out.observation[...] = self._observation
        out.alive.fill(True)
        if out.action_mask is not None:
            out.action_mask.fill(True)


@dataclass(frozen=True)
class Spent:
    """What some steps of one actor took."""

    env_steps: int
    cpu_s: float
    """Of the actor's thread."""
    seconds: dict[str, float]
    """By activity, by the actor's own stopwatch: env, inference, ...; `other` is what is left of its CPU time."""


class ActorRig:
    """One actor that is fed and drained from here, in turn with its polls."""

    def __init__(
        self,
        config: EnvConfig,
        num_envs: int,
        policy: PolicyConfig,
        *,
        num_groups: int = 1,
        rollout_length: int = ROLLOUT_LENGTH,
    ) -> None:
        self._stack = ExitStack()
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        resolver, keyring = MemoryNameResolver(), create_keyring(root / "auth")
        self._context = RunContext("actor", "step", resolver, SocketFactory(keyring))
        self._stack.callback(self._context.close)
        probe = make_env(config, num_envs)
        spec = PolicySpec(env=probe.spec, policy=policy)
        probe.close()
        self.spec, self.num_agents = spec, spec.env.num_agents
        trial = ("actor", "step")
        shapes = actor_shapes(spec)
        self._publisher = ParameterPublisher(
            self._context,
            names.parameter_stream(*trial, "trainer/0"),
            shapes,
            metadata={"policy_spec": to_dict(spec)},
        )
        self._stack.callback(self._publisher.close)
        rng = np.random.default_rng(1)
        weights = {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        self._publisher.publish(1, weights)
        self._receiver = SampleReceiver(
            self._context, names.sample_stream(*trial, "trainer/0"), max_bytes=2**28
        )
        self._stack.callback(self._receiver.close)
        server = ZmqServer(*trial, "actor/0", context=self._context)
        self._stack.callback(server.close)
        self._actor = ActorWorker(server, self._context, RunDirectory(root, *trial))
        assigned = ActorAssignment(
            mode="async",
            env=config,
            actors=ActorGroupConfig(num_envs=num_envs, num_groups=num_groups),
            rollout_length=rollout_length,
        )
        self._actor._configure(to_dict(assigned))
        self._stack.callback(lambda: self._actor._on_exit(self._actor.status))
        self._num_envs = num_envs
        self._warm_up()

    def measure(self, num_steps: int) -> Spent:
        """Let the actor take at least so many steps of all environments."""
        before = self._seconds()
        steps, cpu_s = 0, 0.0
        while steps < num_steps * self._num_envs:
            self._drain()
            started_s = time.thread_time()
            steps += self._actor._poll().num_samples
            cpu_s += time.thread_time() - started_s
        after = self._seconds()
        seconds = {name: after[name] - before[name] for name in after}
        seconds["other"] = cpu_s - sum(spent for name, spent in seconds.items() if name != "other")
        return Spent(steps, cpu_s, seconds)

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def __enter__(self) -> ActorRig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _warm_up(self) -> None:
        deadline = time.monotonic() + _MAX_START_S
        batches = 0
        while batches < 8:
            if time.monotonic() > deadline:
                raise TimeoutError("the actor has not begun to send batches")
            batches += self._actor._poll().num_batches
            self._drain()

    def _drain(self) -> None:
        self._receiver.poll()
        self._receiver.consume(self._receiver.take())

    def _seconds(self) -> dict[str, float]:
        metrics = self._actor._metrics()
        return time_use.seconds_by_activity(metrics)


@contextmanager
def stopwatch_of_cpu_time() -> Iterator[None]:
    """Let actors' stopwatches go by CPU time: a busy machine's other work is not counted; each look costs more."""
    module: Any = time_use
    wall_clock = module.perf_counter
    module.perf_counter = time.thread_time
    try:
        yield
    finally:
        module.perf_counter = wall_clock
