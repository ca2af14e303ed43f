"""Real actor and policy workers whose network costs nothing, or a given time, to measure what is between them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base import names
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import create_keyring, load_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.config import (
    ActorAssignment,
    ActorGroupConfig,
    EnvConfig,
    PolicyAssignment,
    PolicyConfig,
    StreamConfig,
    to_dict,
)
from hpc_marl.control.worker_control import ZmqServer
from hpc_marl.envs import make_env
from hpc_marl.policies.act_rows import ActRows
from hpc_marl.policies.spec import ActResult, PolicySpec, actor_shapes
from hpc_marl.streams.parameters import ParameterPublisher
from hpc_marl.streams.samples import SampleReceiver
from hpc_marl.workers import acting
from hpc_marl.workers.acting import Acting
from hpc_marl.workers.actor import ActorWorker
from hpc_marl.workers.policy import PolicyWorker

_TRIAL = ("remote", "inference")
_ROLLOUT_LENGTH = 128
_MAX_START_S = 30.0


class FreeActor:
    """A policy that always takes action 0; `act` takes `sleep_s`."""

    def __init__(self, spec: PolicySpec, sleep_s: float = 0.0) -> None:
        self.spec = spec
        self.policy_version = -1
        self._sleep_s = sleep_s
        self._results: dict[tuple[int, ...], ActResult] = {}

    def load(self, weights: Mapping[str, NDArray[Any]], policy_version: int) -> None:
        """Take note of the version."""
        self.policy_version = policy_version

    def act(
        self,
        observation: NDArray[Any],
        action_mask: NDArray[np.bool_] | None,
        memory: NDArray[np.float32] | None,
        noise: NDArray[np.float32],
        greedy: bool = False,
    ) -> ActResult:
        """Return the same arrays for every batch of one size."""
        if self._sleep_s:
            time.sleep(self._sleep_s)
        shape = observation.shape[:2]
        if shape not in self._results:
            arrays = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
            self._results[shape] = ActResult(*arrays, None, self.policy_version)
        return self._results[shape]

    def act_rows(self, rows: ActRows, greedy: bool = False) -> None:
        """Leave the zeros that are there."""


class FreePolicyWorker(PolicyWorker):
    """A policy worker with a FreeActor."""

    sleep_s = 0.0

    def _make_actor(self, spec: PolicySpec) -> Any:
        return FreeActor(spec, self.sleep_s)


class Trial:
    """One trial in a directory, with a trainer's two streams; policy workers are processes of their own.

    Args:
        directory: its own.
        make: the environment.
    """

    def __init__(self, directory: Path, make: dict[str, Any]) -> None:
        directory.mkdir()
        create_keyring(directory / "auth")
        self.directory = directory
        self._stack = ExitStack()
        self.context = self._stack.enter_context(_open(directory))
        self.env = EnvConfig(make=make)
        probe = make_env(self.env, 1)
        self.spec = PolicySpec(env=probe.spec, policy=PolicyConfig())
        probe.close()
        shapes = actor_shapes(self.spec)
        publisher = ParameterPublisher(
            self.context,
            names.parameter_stream(*_TRIAL, "trainer/0"),
            shapes,
            metadata={"policy_spec": to_dict(self.spec)},
        )
        self._stack.callback(publisher.close)
        publisher.publish(1, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        self.receiver = SampleReceiver(
            self.context, names.sample_stream(*_TRIAL, "trainer/0"), max_bytes=2**28
        )
        self._stack.callback(self.receiver.close)
        self._num_actors = 0

    def start_policy(self, sleep_s: float) -> None:
        """Start a policy worker whose network takes `sleep_s`."""
        self.start(_serve, str(self.directory), sleep_s)

    def start(self, target: Any, *arguments: Any) -> None:
        """Run a function in a process that ends with the trial."""
        process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
        process.start()
        self._stack.callback(process.join)
        self._stack.callback(process.kill)

    def new_actor(
        self, inference: str, transport: str, envs_per_group: int, num_groups: int
    ) -> MeasuredActor:
        """Return another actor; it is closed with the trial."""
        assigned = ActorAssignment(
            index=0,
            seed=(self._num_actors,),
            mode="async",
            inference=inference,  # type: ignore[arg-type]
            env=self.env,
            actors=ActorGroupConfig(num_envs=envs_per_group * num_groups, num_groups=num_groups),
            rollout_length=_ROLLOUT_LENGTH,
            streams=StreamConfig(transport=transport),  # type: ignore[arg-type]
        )
        actor = MeasuredActor(self, f"actor/{self._num_actors}", assigned)
        self._num_actors += 1
        self._stack.callback(actor.close)
        return actor

    def close(self) -> None:
        """End everything."""
        self._stack.close()


class MeasuredActor:
    """An actor worker of this process, in turn with the receiver of its batches."""

    def __init__(self, trial: Trial, name: str, assigned: ActorAssignment) -> None:
        self._receiver = trial.receiver
        self._server = ZmqServer(*_TRIAL, name, context=trial.context)
        self.worker = ActorWorker(self._server, trial.context, RunDirectory(trial.directory, *_TRIAL))
        self.worker._configure(to_dict(assigned))  # type: ignore[arg-type]
        self._context, self._assigned = trial.context, assigned

    def use(self, make: Callable[[RunContext, ActorAssignment], Acting]) -> None:
        """Let others choose the actions than the workers' own ways."""
        assert self.worker._acting is not None
        self.worker._acting.close()
        self.worker._acting = make(self._context, self._assigned)

    def rate(self, seconds: float) -> float:
        """Return environment steps per second over `seconds`, after some to warm up."""
        deadline = time.monotonic() + _MAX_START_S
        warm = 0
        while warm < 2:
            warm += self._turn() > 0
            if time.monotonic() > deadline:
                raise TimeoutError("the actor has not begun to step its environments")
        started, steps = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < seconds:
            steps += self._turn()
        return steps / spent

    def close(self) -> None:
        """End the worker."""
        self.worker._on_exit(self.worker.status)
        self._server.close()

    def _turn(self) -> int:
        steps = self.worker._poll().num_samples
        self._server.handle_requests()
        self._receiver.poll()
        self._receiver.consume(self._receiver.take())
        return steps


@contextmanager
def free_inline_networks() -> Iterator[None]:
    """Make the network of actors with inline inference cost nothing."""
    made, acting.make_actor = acting.make_actor, FreeActor
    try:
        yield
    finally:
        acting.make_actor = made


@contextmanager
def _open(directory: Path) -> Iterator[RunContext]:
    sockets = SocketFactory(load_keyring(directory / "auth"))
    with RunContext(*_TRIAL, FileNameResolver(directory / "names"), sockets) as context:
        yield context


def _serve(directory: str, sleep_s: float) -> None:
    """Be a policy worker until killed."""
    FreePolicyWorker.sleep_s = sleep_s
    with _open(Path(directory)) as context, ZmqServer(*_TRIAL, "policy/0", context=context) as server:
        worker = FreePolicyWorker(server, context, RunDirectory(Path(directory), *_TRIAL))
        worker._configure(to_dict(PolicyAssignment(mode="async")))  # type: ignore[arg-type]
        while True:
            worker._poll()
            server.handle_requests()
