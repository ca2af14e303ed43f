"""What makes steps fit for GPUs: one optimiser kernel, no look at results, minibatches at one place, bfloat16."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_marl.algorithms import fused_adam
from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.cuda_graphs import FixedMinibatch, StepGraph
from hpc_marl.algorithms.device_clock import DeviceClock
from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.fused_adam import FusedAdam
from hpc_marl.algorithms.minibatches import TrainingRows
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.config import PolicyConfig, PPOConfig
from hpc_marl.data import EnvSpec, SampleLayout
from hpc_marl.policies import PolicySpec
from hpc_marl.policies.actor_critic import NetworkInputs
from tests.unit.algorithms.sample_batches import make_batch, make_spec

CPU = torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS = {
    "mlp": make_spec(),
    "masked": make_spec(has_action_mask=True, num_agents=3),
    "continuous": make_spec(num_actions=0, action_size=2, critic="local"),
    "gru": make_spec("gru", state_size=3),
    "images": PolicySpec(
        env=EnvSpec(
            agent_names=("a", "b"), observation_size=2 * 12 * 12, image_shape=(2, 12, 12), num_actions=3
        ),
        policy=PolicyConfig(conv_channels=(4,), conv_kernels=(4,), conv_strides=(2,), hidden_sizes=(16,)),
        critic="central",
    ),
}
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")
"""Operations whose result the CPU must know, so that on a GPU it waits."""
FROM_CPU = ("lift_fresh", "_to_copy")
"""Operations that may copy from the CPU, which a CUDA graph cannot."""


def make_ppo(
    kind: str, *, steps=AutogradSteps, device="cpu", precision="float32", cuda_graph=False, **config
):
    spec = KINDS[kind]
    settings = {"num_epochs": 2, "num_minibatches": 3, "learning_rate": 0.003, "clip_eps": 0.1, **config}
    return PPO(
        PPOConfig(critic=spec.critic, memory_chunk_length=4, **settings),
        spec,
        total_env_steps=1000,
        steps=steps,
        device=device,
        precision=precision,
        cuda_graph=cuda_graph,
    )


def batch_of(kind: str, seed: int = 0, num_envs: int = 6):
    spec = KINDS[kind]
    if kind != "images":
        return make_batch(spec, make_ppo(kind).actor_weights(), seed=seed, num_envs=num_envs)
    batch, rng = SampleLayout(spec.env, 16, num_envs).allocate(), np.random.default_rng(seed)
    batch.observation[:] = rng.integers(0, 256, batch.observation.shape)
    batch.action[:] = rng.integers(0, 3, batch.action.shape)
    batch.reward[:] = batch.action == 0
    batch.log_prob[:] = -np.log(3)
    batch.alive[:] = True
    return batch


def weights_of(ppo: PPO) -> torch.Tensor:
    return torch.cat([parameter.detach().cpu().flatten() for parameter in ppo.model.parameters()])


def use_fixed_places(ppo: PPO) -> list[int]:
    """Let a learner on the CPU work as a graph does, but for the graph; return what counts the recordings."""
    recordings = []

    def record(step):
        recordings.append(1)
        return step

    ppo._steps._graph = StepGraph(ppo._steps._learn, record)
    return recordings


# --- the optimiser


def test_the_optimiser_is_torchs_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    ours = {
        name: torch.randn(shape, generator=generator)
        for name, shape in (("a", (5, 3)), ("b", (7,)), ("c", ()))
    }
    theirs = [tensor.clone().requires_grad_() for tensor in ours.values()]
    one = FusedAdam(ours, eps=1e-5)
    other = torch.optim.Adam(theirs, lr=1.0, eps=1e-5, fused=True)
    for number in range(6):
        for tensor, twin in zip(ours.values(), theirs, strict=True):
            tensor.grad = torch.randn(tensor.shape, generator=generator)
            twin.grad = tensor.grad.clone()
        one.set_learning_rate(3e-4 / (1 + number))
        other.param_groups[0]["lr"] = 3e-4 / (1 + number)
        one.step(torch.zeros(()))
        other.step()
    for (name, tensor), twin in zip(ours.items(), theirs, strict=True):
        assert torch.equal(tensor, twin)
        for key, value in other.state[twin].items():
            assert np.array_equal(one.state()[f"{key}.{name}"], value.numpy()), key


def test_a_step_that_is_called_off_leaves_no_trace():
    tensor = torch.arange(4.0)
    adam = FusedAdam({"x": tensor}, eps=1e-5)
    adam.set_learning_rate(0.1)
    tensor.grad = torch.ones(4)
    adam.step(torch.ones(()))
    assert tensor.tolist() == [0, 1, 2, 3] and adam.state() == {}
    adam.step(torch.zeros(()))
    before, weights = adam.state(), tensor.clone()
    tensor.grad = torch.full((4,), torch.nan)
    adam.step(torch.ones(()))
    assert torch.equal(tensor, weights)
    assert all(np.array_equal(array, before[name]) for name, array in adam.state().items())


def test_state_is_loaded_where_it_is():
    tensor, places = torch.ones(3), []
    adam = FusedAdam({"x": tensor}, eps=1e-5)
    places = [part.data_ptr() for parts in adam._state.values() for part in parts]
    state = {"step.x": np.float32(7), "exp_avg.x": np.full(3, 0.5, np.float32), "unknown": np.zeros(1)}
    adam.load(state)
    assert [part.data_ptr() for parts in adam._state.values() for part in parts] == places
    assert adam.state()["step.x"] == 7 and adam.state()["exp_avg.x"].tolist() == [0.5] * 3
    assert adam.state()["exp_avg_sq.x"].tolist() == [0] * 3
    adam.load({})
    assert adam.state() == {}


def test_gradients_lie_in_memory_as_the_parameters_do(monkeypatch: pytest.MonkeyPatch):
    """Where channels come last, those of 1 x 1 convolutions do not, and torch 2.4's kernel for GPUs refuses them."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, 1)
    images = torch.rand(2, 3, 4, 4, generator=generator)
    weight, twin = layer.weight, layer.weight.detach().clone()
    adam, other = (FusedAdam({"x": tensor}, eps=1e-5) for tensor in (weight, twin))
    layer(images).square().sum().backward()
    values = weight.grad.clone()
    weight.grad = values.as_strided(values.shape, (3, 1, 3, 3))  # as cuDNN leaves it
    twin.grad = values
    seen, kernel = [], fused_adam._KERNEL

    def watched(parameters, gradients, *states, **settings):
        seen.extend(zip(parameters, gradients, strict=True))
        kernel(parameters, gradients, *states, **settings)

    monkeypatch.setattr(fused_adam, "_KERNEL", watched)
    for optimiser in (adam, other):
        optimiser.set_learning_rate(0.1)
        optimiser.step(torch.zeros(()))
    assert len(seen) == 2 and all(one.stride() == two.stride() for one, two in seen)
    assert torch.equal(weight, twin)


# --- no look at results


class Watch(TorchDispatchMode):
    """Notes every operation, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        copies_here = name == "_to_copy" and isinstance(args[0], torch.Tensor)
        if not copies_here or (kwargs or {}).get("device") not in (None, args[0].device):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_makes_the_cpu_wait_nor_copies_from_it(kind: str, precision: str):
    ppo = make_ppo(kind, precision=precision)
    steps = ppo._steps
    ppo.update(batch_of(kind), 0)
    rows = steps._rows
    with Watch() as watch:
        found = steps._learn(rows)
    assert {"_fused_adam_", "_foreach_mul_"} <= set(watch.seen)
    assert not {*WAITS, *FROM_CPU} & set(watch.seen)
    assert found.shape == (7,) and not found.requires_grad


def test_the_watch_sees_what_makes_a_cpu_wait():
    with Watch() as watch:
        bool((torch.arange(3.0) > 1).nonzero().any())
    assert {"nonzero", "_local_scalar_dense"} <= set(watch.seen)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_waits_twice(kind: str):
    ppo, order = make_ppo(kind), []
    steps = ppo._steps
    steps.meanwhile = lambda: order.append("meanwhile")
    real = steps._learn
    steps._learn = lambda rows: (order.append("step"), real(rows))[1]
    ppo.update(batch_of(kind), 0)
    assert order == ["step"] * 6 + ["meanwhile"]


def test_what_is_not_finite_is_left_out_on_the_device():
    ppo = make_ppo("mlp", num_epochs=1, num_minibatches=4)
    steps, calls, seen = ppo._steps, [], []
    real = steps._loss

    def loss(rows):
        value, found = real(rows)
        calls.append(1)
        seen.append(weights_of(ppo))
        return value + (torch.nan if len(calls) == 2 else 0.0), found

    steps._loss = loss
    metrics = ppo.update(batch_of("mlp"), 0)
    assert metrics["skipped_minibatches"] == 1.0 and ppo.optimizer_steps == 3
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise([*seen, weights_of(ppo)])]
    assert moved == [True, False, True, True]
    assert ppo.state_dict()[0]["optim"]["step.actor.head.bias"] == 3
    assert np.isfinite(list(metrics.values())).all()


# --- minibatches at one place


def numbered_rows(count: int) -> TrainingRows:
    number = torch.arange(count)
    return TrainingRows(NetworkInputs(number.float()), number, number.float().expand(5, count).clone() + 1)


@pytest.mark.parametrize(
    ("count", "parts", "most"), [(12, 4, 12), (13, 4, 13), (3, 5, 12), (9, 2, 20), (5, 1, 5)]
)
def test_fixed_minibatches_are_the_ones_drawn_otherwise(count: int, parts: int, most: int):
    fixed, rows = FixedMinibatch(), numbered_rows(count)
    ours, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    places = set()
    for _ in range(3):
        expected = list(rows.minibatches(parts, theirs))
        drawn = 0
        for piece, wanted in zip(fixed.minibatches(rows, most, parts, ours), expected, strict=True):
            places.add((id(piece), piece.action.data_ptr(), piece.scalars.data_ptr()))
            assert len(piece) == -(-most // parts)
            real = len(wanted)
            assert torch.equal(piece.action[:real], wanted.action)
            assert torch.equal(piece.inputs.own[:real], wanted.inputs.own)
            assert torch.equal(piece.scalars[:, :real], wanted.scalars)
            assert not piece.scalars[4, real:].any() and (piece.action[real:] == wanted.action[0]).all()
            drawn += real
        assert drawn == count
    assert len(places) == 1


def test_another_shape_gets_another_place():
    fixed, generator = FixedMinibatch(), torch.Generator()
    first = next(fixed.minibatches(numbered_rows(8), 8, 2, generator))
    assert next(fixed.minibatches(numbered_rows(7), 8, 2, generator)) is first  # some rows were left out
    assert next(fixed.minibatches(numbered_rows(12), 12, 2, generator)) is not first
    assert list(fixed.minibatches(numbered_rows(0), 12, 2, generator)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_steps_at_one_place_are_steps_anywhere(kind: str):
    """With minibatches of one size bit for bit."""
    eager, fixed = (make_ppo(kind, num_minibatches=2) for _ in range(2))
    recordings = use_fixed_places(fixed)
    for number in range(3):
        batch = batch_of(kind, seed=number)
        batch.alive[:-1] |= ~batch.alive[:-1].any(axis=2, keepdims=True)  # no row is left out
        assert fixed.update(batch, 0) == eager.update(batch, 0)
    assert torch.equal(weights_of(eager), weights_of(fixed))
    assert len(recordings) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_stand_in_for_missing_ones_weigh_nothing(kind: str):
    eager, fixed = (make_ppo(kind, num_minibatches=5) for _ in range(2))
    recordings = use_fixed_places(fixed)
    for number in range(3):
        batch = batch_of(kind, seed=number)
        expected, found = eager.update(batch, 0), fixed.update(batch, 0)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(weights_of(fixed), weights_of(eager), rtol=1e-3, atol=1e-4)
    assert len(recordings) == 1


def test_other_sizes_are_recorded_anew():
    ppo = make_ppo("mlp")
    recordings = use_fixed_places(ppo)
    for num_envs in (6, 6, 4, 4, 6):
        ppo.update(batch_of("mlp", num_envs=num_envs), 0)
    assert len(recordings) == 3


def test_a_rehearsal_changes_nothing():
    ppo = make_ppo("gru")
    steps = ppo._steps
    ppo.update(batch_of("gru"), 0)
    before, state = weights_of(ppo), steps.state()
    steps._rehearses.fill_(1.0)
    first = steps._learn(steps._rows)
    assert torch.equal(weights_of(ppo), before)
    assert all(np.array_equal(array, state[name]) for name, array in steps.state().items())
    steps._rehearses.fill_(0.0)
    assert torch.equal(steps._learn(steps._rows), first) and not torch.equal(weights_of(ppo), before)


# --- precision


@pytest.mark.parametrize("kind", KINDS)
def test_networks_in_bfloat16_learn_nearly_the_same_and_keep_float32(kind: str):
    exact, rough = (make_ppo(kind, precision=precision) for precision in ("float32", "bf16"))
    for ppo in (exact, rough):
        metrics = ppo.update(batch_of(kind), 0)
        assert metrics["skipped_minibatches"] == metrics["skipped_updates"] == 0.0
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())
    assert {array.dtype for array in rough._steps.state().values()} == {np.dtype(np.float32)}
    start = weights_of(make_ppo(kind))
    one, other = weights_of(exact) - start, weights_of(rough) - start
    assert not torch.equal(one, other)  # something was computed otherwise
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.8


def test_losses_are_of_float32_numbers():
    steps = make_ppo("gru", precision="bf16")._steps
    steps.read(batch_of("gru"))
    action = steps._tensors.action()
    log_prob, entropy, value = steps._evaluation(steps._inputs, action)
    assert {tensor.dtype for tensor in (log_prob, entropy, value)} == {torch.float32}
    values, log_probs = steps.evaluate(with_log_prob=True)
    assert values.dtype == log_probs.dtype == np.float32 and values.shape == (17, 6, 2)
    np.testing.assert_array_equal(steps._tensors.restore(log_prob).detach(), log_probs)


def test_networks_learned_by_hand_are_learned_by_autograd_in_bfloat16():
    assert isinstance(make_ppo("mlp", steps=None)._steps, FlatSteps)
    assert isinstance(make_ppo("mlp", steps=None, precision="bf16")._steps, AutogradSteps)


# --- the clock


class FakeEvent:
    """An event of a device whose time goes on by 1 ms with everything it is asked."""

    now_ms = 0.0

    def record(self) -> None:
        FakeEvent.now_ms += 1.0
        self.at_ms = FakeEvent.now_ms

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at_ms - self.at_ms


def test_the_device_time_of_an_update_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    clock = DeviceClock(torch.device("cuda"), FakeEvent)
    for _ in range(2):
        clock.begin_update()
        for _ in range(3):
            clock.begin()
            clock.end()
        with clock.wait():
            pass
        metrics = clock.metrics()
        assert metrics["device_s"] == pytest.approx(3e-3) and metrics["device_memory_mb"] == 3.0
        assert 0 < metrics["device_share"] <= 1 and 0 <= metrics["device_wait_share"] <= 1


def test_a_cpu_has_no_device_time():
    assert (
        make_ppo("gru").update(batch_of("gru"), 0).keys() == make_ppo("mlp").update(batch_of("mlp"), 0).keys()
    )
    clock = DeviceClock(CPU)
    clock.begin()
    clock.end()
    assert clock.metrics() == {}


# --- on a GPU


@NEEDS_GPU
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_gpu_learns_what_the_cpu_learns(kind: str, cuda_graph: bool):
    cpu, gpu = make_ppo(kind), make_ppo(kind, device="cuda", cuda_graph=cuda_graph)
    for number in range(3):
        batch = batch_of(kind, seed=number)
        expected, found = cpu.update(batch, 0), gpu.update(gpu.stage([batch]), 0)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=2e-2, abs=2e-3), name
        assert found["device_s"] > 0 and found["device_memory_mb"] > 0
    np.testing.assert_allclose(weights_of(gpu), weights_of(cpu), rtol=1e-2, atol=1e-3)


@NEEDS_GPU
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_replay_what_is_launched_otherwise(kind: str):
    eager, graph = (make_ppo(kind, device="cuda", cuda_graph=wanted) for wanted in (False, True))
    for number in range(4):
        batch = batch_of(kind, seed=number, num_envs=6 if number < 3 else 4)
        expected, found = eager.update(batch, 0), graph.update(batch, 0)
        assert found["policy_loss"] == pytest.approx(expected["policy_loss"], rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(weights_of(graph), weights_of(eager), rtol=1e-3, atol=1e-4)
    assert graph.optimizer_steps == eager.optimizer_steps
    graph.load_state_dict(*eager.state_dict())
    batch = batch_of(kind, seed=9, num_envs=4)
    eager.update(batch, 0)
    graph.update(batch, 0)
    np.testing.assert_allclose(weights_of(graph), weights_of(eager), rtol=1e-3, atol=1e-4)


@NEEDS_GPU
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_equal_seeds_and_batches_give_equal_weights_on_a_gpu(kind: str, cuda_graph: bool):
    one, other = (make_ppo(kind, device="cuda", cuda_graph=cuda_graph) for _ in range(2))
    for number in range(3):
        batch = batch_of(kind, seed=number, num_envs=64)
        one.update(batch, 0)
        other.update(batch, 0)
    assert torch.equal(weights_of(one), weights_of(other))


@NEEDS_GPU
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("kind", KINDS)
def test_steps_on_a_gpu_never_make_the_cpu_wait(kind: str):
    ppo = make_ppo(kind, device="cuda")
    ppo.update(batch_of(kind), 0)
    steps = ppo._steps
    generator = torch.Generator().manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for minibatch in steps._minibatches(generator):
            steps._step(minibatch, True, 0.001)
    finally:
        torch.cuda.set_sync_debug_mode("default")
