"""Remote inference in this process: the same batches as inline, and a group does not wait for another one's answer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpc_marl.base import names
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ActorAssignment, PolicyAssignment, PolicyConfig, StreamConfig, to_dict
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.streams.inference import InferenceServer
from hpc_marl.workers.policy import PolicyWorker
from tests.unit.control.control_fakes import QueueServer, eventually
from tests.unit.workers.test_actor import COUNTING, NUM_STEPS, TRIAL, Actor, assigned

MASKED = {**COUNTING, "masked": True, "early_steps": 1}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Actor]]:
    with ExitStack() as stack:

        def begin(config: ActorAssignment, policy: PolicyConfig) -> Actor:
            directory = tmp_path / config.inference
            directory.mkdir()
            actor = Actor(directory, config, policy)
            stack.callback(actor.close)
            return actor

        yield begin


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., PolicyWorker]]:
    """Return a function that starts a policy worker beside an actor."""
    with ExitStack() as stack:

        def begin(actor: Actor, config: PolicyAssignment) -> PolicyWorker:
            worker = PolicyWorker(QueueServer("policy/0"), actor.context, RunDirectory(tmp_path, *TRIAL))
            worker._configure(to_dict(config))
            stack.callback(worker._on_exit, WorkerStatus.COMPLETED)
            return worker

        yield begin


def play(actor: Actor, policy: PolicyWorker | None, count: int) -> list[dict[str, NDArray[Any]]]:
    """Return copies of so many batches, by group."""
    batches: list[tuple[int, dict[str, NDArray[Any]]]] = []

    def turn() -> bool:
        actor.worker._poll()
        if policy is not None:
            policy._poll()
        actor.receiver.poll()
        for received in actor.receiver.take():
            arrays = {name: array.copy() for name, array in received.batch.arrays().items()}
            batches.append((received.metadata.group, arrays))
            actor.receiver.consume([received])
        return len(batches) >= count

    eventually(turn, bool)
    return [batch for _, batch in sorted(batches[:count], key=lambda pair: pair[0])]


@pytest.mark.parametrize("transport", ["auto", "zmq"])
@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_remote_batches_are_bit_by_bit_those_of_inline(
    start: Callable[..., Actor], serve: Callable[..., PolicyWorker], transport: Any, recurrent: Any
) -> None:
    policy = PolicyConfig(hidden_sizes=(8,), recurrent=recurrent, memory_size=6)
    inline = assigned(MASKED, "sync", 2)
    streams = dataclasses.replace(inline.streams, transport=transport)
    remote = dataclasses.replace(inline, inference="remote", streams=streams)
    played = []
    for config in (inline, remote):
        actor = start(config, policy)
        served = serve(actor, PolicyAssignment(mode="sync", streams=streams)) if config is remote else None
        for version in (1, 2):
            actor.publish(version)
            played.append(play(actor, served, 2))
    assert served is not None and served._inference is not None
    assert served._inference.statistics().attached == (transport == "auto")
    for ours, theirs in zip(played[2] + played[3], played[0] + played[1], strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_a_group_that_is_answered_does_not_wait_for_another(start: Callable[..., Actor]) -> None:
    remote = dataclasses.replace(assigned(COUNTING, "async", 2), inference="remote", streams=StreamConfig())
    actor = start(remote, PolicyConfig(hidden_sizes=(8,)))
    actor.publish(1)
    server = InferenceServer(actor.context, names.inference_stream(*TRIAL, "policy/0"))
    kept: dict[int, Any] = {}

    def answer_the_second_group() -> bool:
        actor.worker._poll()
        server.poll()
        for request in server.take(10_000):
            kept[request.group] = request
            if request.group == 1:
                shape = request.arrays["observation"].shape[:2]
                zeros = {"action": np.zeros(shape, np.int32), "log_prob": np.zeros(shape, np.float32)}
                server.reply([request], zeros, 1)
        actor.receiver.poll()
        received = actor.receiver.take()
        actor.receiver.consume(received)
        return any(one.metadata.group == 1 for one in received)

    with contextlib.closing(server):
        eventually(answer_the_second_group, bool)
    assert actor.worker._groups[0].waiting and kept[0].id == 0 and kept[1].id > NUM_STEPS
