"""What an update costs on a GPU, by precision and with CUDA graphs, beside the common way to write PPO.

    common eager   measuring/common_ppo.py on the same device: Categorical, torch.optim.Adam, index arrays from numpy;
                   torch's own settings, so that convolutions are in TF32
    ours, eager    float32 | tf32 | bf16: trainer.precision
    ours, graph    trainer.cuda_graph=true, in float32 and bf16

Networks: 64 x 64 tanh in minibatches of 1024, 4096 and 16384; the Nature CNN on 84 x 84 x 4 images in minibatches of
1024; a GRU of 128 with windows of 16 steps. Four minibatches, four epochs. An update is the whole of it, from the batch
in shared memory: copies, values, estimates, steps. Ours stages the next batch while it learns, as a trainer with
mode=async does. `device busy` is the share of the time in which kernels or copies ran, by torch.profiler, in an update
of its own; `copies beside kernels` is the share of the copies' time in which something was also computed.

Before anything is timed, results are checked: each way must learn from one batch what float32 without graphs learns
(graphs to rounding, tf32 and bf16 in about the same direction), and that what the CPU learns. A check that fails is
printed, and the script ends with 1.

    python benchmarks/gpu_learner.py    a few minutes on a GPU; without one what a CPU can tell, in seconds

Whole trainings are not timed here; the last lines say how.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring.common_ppo import CommonPPO, require_all_learned
from measuring.comparisons import shown
from measuring.device_timeline import DeviceTimeline, watch_device
from measuring.reporting import machine_facts, markdown_table
from torch import Tensor

from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.config import PolicyConfig, PPOConfig
from hpc_marl.data import EnvSpec, SampleBatch, SampleLayout
from hpc_marl.policies import PolicySpec
from hpc_marl.policies.precision import use_device

COMMON, REFERENCE = "common eager", "ours, float32"
NEEDS_GPU = "needs a GPU"
WAYS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "ours, tf32": {"precision": "tf32"},
    "ours, bf16": {"precision": "bf16"},
    "ours, float32, graph": {"cuda_graph": True},
    "ours, bf16, graph": {"precision": "bf16", "cuda_graph": True},
}
_GPU_ONLY = {"ours, tf32", "ours, float32, graph", "ours, bf16, graph"}
EPOCHS, MINIBATCHES, _CHUNK = 4, 4, 16
IMAGE = (4, 84, 84)
_HEADER = (
    *("what", "ms per update", "lowest to highest", "samples/s", "common / this", "device busy"),
    *("copies beside kernels", "work memory, MB"),
)
_PONG = "\n".join(
    (
        "Whole trainings (returns are in the live panel, in the summary and in metrics.jsonl):",
        "    hpc-marl train experiment=pong_ppo mode=async profile=true actors.count=8 inference=remote \\",
        "        policies.device=cuda trainer.device=cuda trainer.precision=bf16 trainer.cuda_graph=true",
        "    python benchmarks/native_envs.py   # the limit: what the emulator alone takes per env_step and core",
    )
)


@dataclass(frozen=True)
class Task:
    """A network and the shape of its batch.

    Attributes:
        name: as the table calls it.
        policy: sizes of the network.
        env: what it sees.
        num_steps: T.
        num_envs: E.
    """

    name: str
    policy: PolicyConfig
    env: EnvSpec
    num_steps: int
    num_envs: int

    @property
    def spec(self) -> PolicySpec:
        """The policy."""
        return PolicySpec(env=self.env, policy=self.policy)

    @property
    def samples(self) -> int:
        """Of one update."""
        return self.num_steps * self.num_envs


class Measured(NamedTuple):
    """What one way to make an update took; of the device where there is one."""

    update_s: list[float]
    timeline: DeviceTimeline | None
    memory_mb: float | None


def tasks(quick: bool) -> list[Task]:
    """Return what is measured; where it is to be quick, small."""
    vectors = EnvSpec(observation_size=16, num_actions=6)
    images = EnvSpec(observation_size=int(np.prod(IMAGE)), image_shape=IMAGE, num_actions=6)
    cnn = PolicyConfig(
        **{"conv_channels": (32, 64, 64), "conv_kernels": (8, 4, 3), "conv_strides": (4, 2, 1)},
        **{"hidden_sizes": (512,), "critic_hidden_sizes": (), "activation": "relu"},
    )
    gru = PolicyConfig(hidden_sizes=(128,), critic_hidden_sizes=(128,), recurrent="gru", memory_size=128)
    found = [
        Task(f"64x64, minibatches of {size}", PolicyConfig(), vectors, 128, size * MINIBATCHES // 128)
        for size in (1024, 4096, 16384)
    ]
    found.append(Task("Nature CNN, minibatches of 1024", cnn, images, 128, 32))
    found.append(Task("GRU of 128, minibatches of 1024", gru, vectors, 128, 32))
    if not quick:
        return found
    sizes = ((32, 8), (16, 2), (32, 4))
    return [
        replace(task, name=f"{task.name.partition(',')[0]}, quick look", num_steps=t, num_envs=e)
        for task, (t, e) in zip((found[0], *found[3:]), sizes, strict=True)
    ]


def make_batch(task: Task, seed: int) -> SampleBatch:
    """Return a made-up batch."""
    spec = task.spec
    chunk = _CHUNK if spec.memory_size else 1
    batch = SampleLayout(task.env, task.num_steps, task.num_envs, spec.memory_size, chunk).allocate()
    rng = np.random.default_rng(seed)
    if task.env.has_images:
        batch.observation[:] = rng.integers(0, 256, batch.observation.shape, np.uint8)
    else:
        batch.observation[:] = rng.standard_normal(batch.observation.shape, np.float32)
    batch.action[:] = rng.integers(task.env.num_actions, size=batch.action.shape)
    batch.log_prob[:] = -np.log(task.env.num_actions)
    batch.reward[:] = rng.standard_normal(batch.reward.shape, np.float32)
    batch.terminated[:] = rng.random(batch.terminated.shape) < 0.02
    batch.is_first[1:] = batch.terminated[..., 0]
    batch.alive[:] = True
    return batch


def make_ppo(task: Task, device: str, **settings: Any) -> PPO:
    """Return one of our learners."""
    config = PPOConfig(
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        memory_chunk_length=_CHUNK,
        value_normalization="none",
        anneal_learning_rate=False,
    )
    return PPO(
        config,
        task.spec,
        total_env_steps=10**9,
        device=device,
        num_threads=torch.get_num_threads(),
        steps=AutogradSteps,
        **settings,
    )


def ways_of(task: Task, device: str) -> dict[str, Callable[[], None]]:
    """Return ways to make one whole update; not those that this device cannot."""
    batches = [make_batch(task, seed) for seed in range(2)]
    ways: dict[str, Callable[[], None]] = {}
    if not task.spec.memory_size:
        shape = IMAGE if task.env.has_images else None
        config = PPOConfig(num_epochs=EPOCHS, num_minibatches=MINIBATCHES)
        common = CommonPPO(
            config, task.env.observation_size, task.env.num_actions, image_shape=shape, device=device
        )
        ways[COMMON] = _as_torch_is(functools.partial(common.update, batches[0]))
    for name, settings in WAYS.items():
        if device != "cpu" or name not in _GPU_ONLY:
            precision = functools.partial(
                use_device, torch.device(device), settings.get("precision", "float32")
            )
            ways[name] = _staged_ahead(make_ppo(task, device, **settings), batches, precision)
    return ways


def _as_torch_is(work: Callable[[], None]) -> Callable[[], None]:
    """Return the same with torch's own settings, with which the common way is run: convolutions in TF32, any order."""

    def run() -> None:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
        work()

    return run


def _staged_ahead(
    ppo: PPO, batches: Sequence[SampleBatch], set_precision: Callable[[], None]
) -> Callable[[], None]:
    """Return what learns from one batch after the other; on a GPU the next is staged meanwhile.

    The precision is the process's, and other ways have theirs.
    """
    staged = [ppo.stage(batches[:1])]
    number = 0

    def stage_next() -> None:
        nonlocal number
        number += 1
        staged.append(ppo.stage([batches[number % len(batches)]]))

    def update() -> None:
        set_precision()
        if ppo.copies_batches:
            ppo._steps.meanwhile = stage_next
        require_all_learned(ppo.update(staged.pop(0) if ppo.copies_batches else batches[0], 0))

    return update


def checks_of(task: Task, device: str) -> list[str]:
    """Return what is wrong with results, in words; [] where nothing is."""
    start = _weights(make_ppo(task, "cpu"))
    batch = make_batch(task, 7)
    found: dict[str, tuple[dict[str, float], Tensor]] = {}
    for name, settings in {"the CPU": {"device": "cpu"}, **WAYS}.items():
        if device == "cpu" and name in _GPU_ONLY:
            continue
        ppo = make_ppo(task, **{"device": device, **settings})
        metrics = ppo.update(ppo.stage([batch]), 0)
        found[name] = (metrics, _weights(ppo) - start)
    expected, direction = found[REFERENCE]
    faults = []
    for name, (metrics, change) in found.items():
        is_rough = name not in (REFERENCE, "the CPU") and "float32" not in name
        cosine = float(torch.nn.functional.cosine_similarity(change, direction, dim=0))
        for loss in ("policy_loss", "value_loss", "entropy"):
            allowed = 0.05 if is_rough else 0.002
            if not abs(metrics[loss] - expected[loss]) <= allowed * max(abs(expected[loss]), 0.05):
                faults.append(f"{task.name}: {loss} of {name} is {metrics[loss]:g}, not {expected[loss]:g}")
        if not cosine > (0.8 if is_rough else 0.99):
            faults.append(f"{task.name}: {name} learns in another direction (cosine {cosine:.3f})")
    return faults


def _weights(ppo: PPO) -> Tensor:
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in ppo.model.parameters()])


def measure(ways: dict[str, Callable[[], None]], device: str, repeats: int) -> dict[str, Measured]:
    """Return what each way took, in turns, and what the device did."""
    is_gpu = device != "cpu"
    for way in ways.values():
        for _ in range(3):
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            _wait(is_gpu)
            began_s = time.perf_counter()
            way()
            _wait(is_gpu)
            seconds[name].append(time.perf_counter() - began_s)
    found = {}
    for name, way in ways.items():
        memory_mb = None
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            way()
            memory_mb = (torch.cuda.max_memory_allocated() - before) / 2**20
        found[name] = Measured(seconds[name], watch_device(way) if is_gpu else None, memory_mb)
    return found


def _wait(is_gpu: bool) -> None:
    if is_gpu:
        torch.cuda.synchronize()


def table(task: Task, found: dict[str, Measured]) -> str:
    """Return the markdown table of one task."""
    rows = []
    for name in (COMMON, *WAYS):
        if name not in found:
            reason = "-" if name == COMMON else NEEDS_GPU
            rows.append([name, reason, *["-"] * (len(_HEADER) - 2)])
            continue
        measured = found[name]
        times_ms = [1e3 * second for second in measured.update_s]
        middle = statistics.median(times_ms)
        ratio = "-"
        if COMMON in found:
            pairs = zip(found[COMMON].update_s, measured.update_s, strict=True)
            ratio = f"{statistics.median(one / other for one, other in pairs):.2f}"
        timeline = measured.timeline
        rows.append(
            [
                *(name, shown(middle), f"{shown(min(times_ms))} to {shown(max(times_ms))}"),
                *(f"{task.samples / middle * 1e3:,.0f}", ratio),
                *(NEEDS_GPU if timeline is None else _percent(timeline.busy_share),),
                *(NEEDS_GPU if timeline is None else _percent(timeline.overlap_share),),
                *(NEEDS_GPU if measured.memory_mb is None else f"{measured.memory_mb:,.0f}",),
            ]
        )
    return markdown_table(_HEADER, rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure and print; 1 where a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--device", help="cuda, cuda:N or cpu (default: cuda; where there is none, cpu --quick)"
    )
    parser.add_argument("--quick", action="store_true", help="small batches, two repeats")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each way (default: 15)")
    options = parser.parse_args(arguments)
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
        options.quick |= options.device == "cpu"
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch {torch.__version__} sees no GPU; use --device cpu")
    use_device(torch.device(options.device), "float32")
    repeats = 2 if options.quick else options.repeats
    faults: list[str] = []
    for task in tasks(options.quick):
        print(f"{task.name} ...", file=sys.stderr)
        faults += checks_of(task, options.device)
        found = measure(ways_of(task, options.device), options.device, repeats)
        shape = f"[{task.num_steps} x {task.num_envs}]"
        print(f"\n{task.name}: {shape}, {EPOCHS} epochs\n\n{table(task, found)}")
    print(f"\nChecks of results: {'all passed' if not faults else ''}", *faults, sep="\n")
    gpu = torch.cuda.get_device_name() if options.device != "cpu" else "no GPU"
    print(f"\n{_PONG}\n\n{gpu}, {machine_facts()}, {os.cpu_count()} CPUs")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
