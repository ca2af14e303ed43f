"""What one PPO minibatch update costs, and a whole update, beside the common way to write it in torch.

    common eager         measuring/common_ppo.py: torch.distributions.Categorical, torch.optim.Adam, clip_grad_norm_
    hpc_marl, autograd   what recurrent policies, images and GPUs take: no Categorical, fused Adam, a gather per epoch
    hpc_marl, by hand    what feed-forward policies on the CPU take: numpy on one flat vector
    matrix products      the limit: the sgemm calls of one forward and backward pass at this size, and nothing else

Actor and critic of 64 x 64 tanh on observations of CartPole's size, two actions, all on one thread. Times are CPU time
of the process; with --threads they are wall times on as many threads, for which as many cores must be free. A minibatch
update is the time of four epochs divided by their minibatches, so it includes shuffling and gathering; a whole update
also evaluates the critic, estimates advantages, and normalises. Repeats are interleaved, ratios are taken within a
repeat, then their median. About a minute:

    python benchmarks/ppo_update.py [--quick] [--repeats N] [--threads N]

torch.compile is no row, and no setting: of the loss it saved a fifth of autograd's time for these networks after 15 to
35 s of compilation, still four times what the passes by hand take; for a GRU with windows of 16 steps it saved a third
after three and a half minutes, and it needs a C++ compiler on every trainer's node.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from measuring.common_ppo import CommonPPO, MatrixProducts, require_all_learned
from measuring.comparisons import Comparison, comparison_table
from measuring.reporting import machine_facts

from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.algorithms.steps import Scalars
from hpc_marl.config import PolicyConfig, PPOConfig
from hpc_marl.data import EnvSpec, SampleBatch, SampleLayout
from hpc_marl.policies import ActorCritic, PolicySpec

COMMON, AUTOGRAD, BY_HAND, LIMIT = (
    "common eager",
    "hpc_marl, autograd",
    "hpc_marl, by hand",
    "matrix products",
)
GOALS = {256: 0.4, 1024: 0.6}
_EPOCHS = 4
_ENV = EnvSpec(observation_size=4, num_actions=2)
_SPEC = PolicySpec(env=_ENV, policy=PolicyConfig())
_STEPS = {AUTOGRAD: AutogradSteps, BY_HAND: FlatSteps}
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Ways = dict[str, Callable[[], None]]


def make_batch(num_steps: int, num_envs: int) -> SampleBatch:
    """Return a made-up batch: episodes end, and nobody is dead for a step, so that all rows count everywhere."""
    batch, rng = SampleLayout(_ENV, num_steps, num_envs).allocate(), np.random.default_rng(0)
    batch.observation[:] = rng.standard_normal(batch.observation.shape)
    batch.action[:] = rng.integers(_ENV.num_actions, size=batch.action.shape)
    batch.log_prob[:] = -np.log(_ENV.num_actions)
    batch.reward[:] = rng.standard_normal(batch.reward.shape)
    batch.terminated[:] = rng.random(batch.terminated.shape) < 0.02
    batch.alive[:] = True
    return batch


def minibatch_ways(size: int, num_minibatches: int, num_threads: int = 1) -> Ways:
    """Return ways to do four epochs of `num_minibatches` of `size` rows; the limit is one thread's."""
    config = PPOConfig(num_epochs=_EPOCHS, num_minibatches=num_minibatches, anneal_learning_rate=False)
    batch = make_batch(size // 8, 8 * num_minibatches)
    rng = np.random.default_rng(1)
    alive = batch.alive[:-1].astype(np.float32)
    noise = rng.standard_normal((3, *alive.shape)).astype(np.float32)
    scalars = Scalars(batch.log_prob, *noise, alive)
    common = CommonPPO(config, _ENV.observation_size, _ENV.num_actions)
    rows = [torch.from_numpy(array.reshape(-1)) for array in (batch.log_prob, noise[0], noise[1])]
    observation = torch.from_numpy(batch.observation[:-1].reshape(-1, _ENV.observation_size))
    action = torch.from_numpy(batch.action.reshape(-1)).long()
    products = MatrixProducts(size, _ENV.observation_size, _ENV.num_actions)

    def bare() -> None:
        for _ in range(_EPOCHS * num_minibatches):
            products.run()

    ways: Ways = {COMMON: lambda: common.fit(observation, action, *rows)}
    for name, kind in _STEPS.items():
        steps = kind(config, ActorCritic(_SPEC), Ranks(), num_threads)
        ways[name] = _fit(steps, config, batch, scalars)
    return {**ways, LIMIT: bare} if num_threads == 1 else ways


def _fit(
    steps: AutogradSteps | FlatSteps, config: PPOConfig, batch: SampleBatch, scalars: Scalars
) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    steps.read(batch)
    return lambda: require_all_learned(steps.fit(scalars, generator, config.learning_rate))


def update_ways(num_steps: int, num_envs: int, size: int, num_threads: int = 1) -> Ways:
    """Return ways to do one whole update of [T, E] and four epochs of minibatches of `size`."""
    config = PPOConfig(
        num_epochs=_EPOCHS, num_minibatches=num_steps * num_envs // size, value_normalization="none"
    )
    batch = make_batch(num_steps, num_envs)
    common = CommonPPO(config, _ENV.observation_size, _ENV.num_actions)
    ways: Ways = {COMMON: lambda: common.update(batch)}
    for name, kind in _STEPS.items():
        ppo = PPO(config, _SPEC, total_env_steps=10**9, steps=kind, num_threads=num_threads)
        ways[name] = _update(ppo, batch)
    return ways


def _update(ppo: PPO, batch: SampleBatch) -> Callable[[], None]:
    return lambda: require_all_learned(ppo.update(batch, 0))


def timed_us(
    ways: Ways, repeats: int, units: float, seconds: float, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Return microseconds per unit of each way in each repeat.

    Args:
        ways: what takes turns.
        repeats: turns of each.
        units: how many units one call does.
        seconds: that one turn takes at least, in whole calls.
        clock: what counts: CPU time or wall time.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm up
    for _ in range(repeats):
        for name, way in ways.items():
            calls, started_s = 0, clock()
            while (elapsed_s := clock() - started_s) < seconds:
                way()
                calls += 1
            found[name].append(elapsed_s * 1e6 / (calls * units))
    return found


def table(found: dict[str, list[float]], goal: float | None) -> str:
    """Return a markdown table of one setting, with ratios to the common implementation."""
    goals = {BY_HAND: goal}
    rows = [Comparison(name, values, found[COMMON], goals.get(name)) for name, values in found.items()]
    if LIMIT in found:
        rows.append(Comparison(f"{BY_HAND}, to the limit", found[BY_HAND], found[LIMIT]))
    return comparison_table(rows, "ratio")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer, shorter repeats")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each way (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="of every update (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock, unit = (
        (time.process_time, "us of CPU") if options.threads == 1 else (time.perf_counter, "us of wall time")
    )
    repeats, seconds = (2, 0.01) if options.quick else (options.repeats, 0.15)
    for size in (256, 1024, 4096):
        print(f"minibatches of {size} ...", file=sys.stderr)
        found = timed_us(minibatch_ways(size, 4, options.threads), repeats, 4 * _EPOCHS, seconds, clock)
        print(f"\nUpdate by one minibatch of {size}, {unit}\n\n{table(found, GOALS.get(size))}")
    for num_steps, num_envs, size in ((64, 32, 256), (64, 32, 1024), (128, 1024, 32768)):
        if options.quick and num_envs > 32:
            continue
        print(f"updates of [{num_steps} x {num_envs}] ...", file=sys.stderr)
        ways, samples = (
            update_ways(num_steps, num_envs, size, options.threads),
            _EPOCHS * num_steps * num_envs,
        )
        found = timed_us(ways, min(repeats, 5), samples, seconds, clock)
        title = (
            f"Whole update, [{num_steps} x {num_envs}] in minibatches of {size}, {unit} per sample and epoch"
        )
        print(f"\n{title}\n\n{table(found, GOALS.get(size))}")
    print(f"\n{machine_facts()}")
    return 0


if __name__ == "__main__":
    if any(os.environ.get(name) != number for name, number in _THREADS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_THREADS})
    sys.exit(main())
