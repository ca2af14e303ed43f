"""Batches on their way to the device: right contents, in buffers that nobody still reads."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.algorithms.staging import STAGED, Staging, to_device
from hpc_marl.config import PPOConfig
from hpc_marl.data import concatenate
from tests.unit.algorithms.sample_batches import make_batch, make_spec

CPU = torch.device("cpu")


class FakeCuda:
    """Streams and events that say what was asked of them, in `log`; kernels run at once."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.current = self.Stream(CPU, "learner")
        self._names = iter(("first copied", "first used", "second copied", "second used"))

    def Stream(self, device: torch.device, name: str = "copies") -> FakeStream:
        assert device == CPU
        return FakeStream(self, name)

    def Event(self) -> FakeEvent:
        return FakeEvent(self, next(self._names))

    def current_stream(self, device: torch.device) -> FakeStream:
        assert device == CPU
        return self.current

    @contextmanager
    def stream(self, stream: FakeStream):
        self.log.append((stream.name, "copies"))
        yield

    def taken(self) -> list[tuple[str, ...]]:
        log, self.log = self.log, []
        return log


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self._cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self._cuda.log.append((self.name, "waits for", other.name))

    def wait_event(self, event: FakeEvent) -> None:
        self._cuda.log.append((self.name, "waits for", event.name))


class FakeEvent:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self._cuda, self.name = cuda, name

    def record(self, stream: FakeStream) -> None:
        self._cuda.log.append((stream.name, "records", self.name))

    def synchronize(self) -> None:
        self._cuda.log.append(("host", "waits for", self.name))


def make_batches(count: int, recurrent: str = "gru", num_envs: int = 6, first_seed: int = 0):
    spec = make_spec(recurrent, has_action_mask=True, state_size=3)
    weights = PPO(PPOConfig(critic="central"), spec, total_env_steps=1).actor_weights()
    return [make_batch(spec, weights, num_envs=num_envs, seed=first_seed + i) for i in range(count)]


@pytest.fixture(params=["host", "device"])
def staging(request: pytest.FixtureRequest) -> Staging:
    return Staging(CPU, None if request.param == "host" else FakeCuda(), pin=False)


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_staged_is_what_was_given(staging: Staging, count: int, recurrent: str):
    batches = make_batches(count, recurrent)
    batches[0].policy_version[:] = 2
    expected = concatenate(batches)
    staged = staging.stage(batches)
    tensors = staging.tensors(staged)
    assert staged.arrays().keys() == expected.arrays().keys()
    for name, array in expected.arrays().items():
        found = staged.arrays()[name]
        assert found.dtype == array.dtype and np.array_equal(found, array), name
        assert not any(np.shares_memory(found, batch.arrays()[name]) for batch in batches)
    assert list(tensors) == [name for name in STAGED if name in expected.arrays()]
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.from_numpy(expected.arrays()[name]).dtype
        assert np.array_equal(tensor.numpy(), expected.arrays()[name]), name


def test_bytes_stay_bytes(staging: Staging):
    batch = make_batches(1)[0]
    batch.observation = (batch.observation * 50).astype(np.uint8)
    assert staging.tensors(staging.stage([batch]))["observation"].dtype == torch.uint8


def test_two_pairs_of_buffers_take_turns_and_the_present_one_is_left_alone(staging: Staging):
    batches = make_batches(5)
    present = staging.stage(batches[:1])
    tensors = staging.tensors(present)
    places = {tensors["observation"].data_ptr()}
    for number in (1, 2, 3):  # staged again and again while the first is learned from
        following = staging.stage([batches[number]])
        assert np.array_equal(present.observation, batches[0].observation)
        assert np.array_equal(tensors["observation"].numpy(), batches[0].observation)
        assert np.array_equal(following.observation, batches[number].observation)
    places.add(staging.tensors(following)["observation"].data_ptr())
    last = staging.stage([batches[4]])
    places.add(staging.tensors(last)["observation"].data_ptr())
    assert len(places) == 2 and last is not present
    assert np.array_equal(following.observation, batches[3].observation)


def test_a_batch_that_was_not_staged_or_was_overwritten_is_staged_when_it_is_wanted(staging: Staging):
    one, *others = make_batches(4)
    assert np.array_equal(staging.tensors(one)["memory"].numpy(), one.memory)
    first = staging.stage(others[:1])
    staging.stage(others[1:2])
    staging.stage(others[2:3])
    # who asks for a batch whose buffers were taken gets what stands in its arrays now, not another's tensors unseen
    assert np.array_equal(staging.tensors(first)["memory"].numpy(), first.memory)


def test_other_shapes_get_other_buffers(staging: Staging):
    small, large = make_batches(1, num_envs=4)[0], make_batches(1, num_envs=9)[0]
    for batch in (small, large, large, small, small, large):
        staged = staging.stage([batch])
        assert np.array_equal(staging.tensors(staged)["observation"].numpy(), batch.observation)
        assert np.array_equal(staged.reward, batch.reward)


def test_streams_wait_for_each_other_and_never_for_what_is_learned_now():
    cuda = FakeCuda()
    staging, batches = Staging(CPU, cuda, pin=False), make_batches(1)
    first = staging.stage(batches)
    assert cuda.taken() == [
        ("host", "waits for", "first copied"),
        ("copies", "waits for", "learner"),  # the buffers are new
        ("copies", "copies"),
        ("copies", "records", "first copied"),
    ]
    staging.tensors(first)
    assert cuda.taken() == [("learner", "waits for", "first copied")]
    second = staging.stage(batches)
    cuda.taken()
    staging.tensors(second)
    assert cuda.taken() == [("learner", "records", "first used"), ("learner", "waits for", "second copied")]
    staging.stage(batches)  # while the second is learned from
    assert cuda.taken() == [
        ("host", "waits for", "first copied"),
        ("copies", "waits for", "first used"),
        ("copies", "copies"),
        ("copies", "records", "first copied"),
    ]


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_learning_from_staged_batches_is_learning_from_batches(recurrent: str):
    batches = make_batches(6, recurrent)
    ppos = [
        PPO(
            PPOConfig(critic="central", num_minibatches=3, memory_chunk_length=4),
            make_spec(recurrent, has_action_mask=True, state_size=3),
            total_env_steps=1000,
            steps=AutogradSteps,
        )
        for _ in range(2)
    ]
    ppos[1]._steps._staging = Staging(CPU, FakeCuda(), pin=False)
    ppos[1]._steps.meanwhile = lambda: staged.append(ppos[1].stage(batches[4:]))
    assert not ppos[0].copies_batches and ppos[1].copies_batches
    staged = [ppos[1].stage(batches[:2])]
    for ours, theirs in ((0, 0), (4, 1), (4, 2)):
        expected = ppos[0].update(ppos[0].stage(batches[ours : ours + 2]), 0)
        assert ppos[1].update(staged[theirs], 0) == expected
    for one, other in zip(ppos[0].model.parameters(), ppos[1].model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_what_is_read_only_is_copied_on_the_cpu():
    array = np.zeros(3, np.float32)
    assert to_device(array, CPU).data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert to_device(array, CPU).data_ptr() != array.ctypes.data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_arrive():
    device, batches = torch.device("cuda"), make_batches(8)
    staging = Staging(device, torch.cuda)
    for _ in range(20):
        for batch in batches:
            staged = staging.stage([batch])
            tensors = staging.tensors(staged)
            product = torch.randn(512, 512, device=device)
            for _ in range(20):
                product = product @ product  # the device is behind the CPU, so that a missing wait shows
            assert staging.stage(batches[:1]) is not staged
            for name, tensor in tensors.items():
                assert np.array_equal(tensor.cpu().numpy(), batch.arrays()[name]), name
