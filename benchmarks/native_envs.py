"""What our adapters add to environments or save: VMAS balance with 600 worlds, Atari Pong with 16 emulators, 16 of MPE.

One thread, random actions drawn beforehand, us of CPU per environment step; all ways take turns in one process.

VMAS alone           its own `step` with tensors, and no episode ever ends: the limit
... with reset_at    each world is reset by itself when its episode of 100 steps is over, as VMAS offers it
ale-py alone         its own vector environment, which resets by itself: the limit
mpe2's parallel API  simple_spread as its users step it, in a loop; ours leaves out the wrappers, which play the same

python benchmarks/native_envs.py [--quick]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import vmas
from ale_py.vector_env import AtariVectorEnv
from measuring.comparisons import Comparison, comparison_table
from measuring.reporting import machine_facts
from mpe2 import simple_spread_v3

from hpc_marl.config import EnvConfig
from hpc_marl.envs import make_env
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.envs.atari import AtariEnv
from hpc_marl.envs.vmas_env import VmasEnv

NUM_WORLDS, NUM_ROBOTS, NUM_EMULATORS, MAX_STEPS = 600, 4, 16, 100
NUM_PARTICLE_WORLDS, MAX_CYCLES = 16, 25
WORLDS, WORLDS_RESET, OURS_FAST, OURS_SLOW = (
    "VMAS alone, no episode ends",
    "VMAS alone, reset_at",
    "ours, fast_resets",
    "ours, one reset at a time",
)
EMULATORS, OURS_ATARI = "ale-py alone", "ours"
PARALLEL_API, OURS_WRAPPED, OURS_DIRECT = "mpe2's parallel API alone", "ours, adapter: pettingzoo", "ours"
_DRAWN_STEPS = 32

Way = Callable[[int], None]
"""Steps all environments so many times."""


def vmas_ways() -> dict[str, Way]:
    """Return the ways of stepping VMAS balance."""
    drawn = torch.rand((_DRAWN_STEPS, NUM_ROBOTS, NUM_WORLDS, 2)) * 2 - 1
    actions = np.ascontiguousarray(np.moveaxis(drawn.numpy(), 1, 2))

    def world(max_steps: int) -> vmas.simulator.environment.Environment:
        return vmas.make_env(
            "balance",
            NUM_WORLDS,
            max_steps=max_steps,
            n_agents=NUM_ROBOTS,
            seed=0,
            terminated_truncated=True,
        )

    endless, ending = world(10**9), world(MAX_STEPS)

    def step_endless(steps: int) -> None:
        for t in range(steps):
            endless.step(list(drawn[t % _DRAWN_STEPS]))

    def step_and_reset(steps: int) -> None:
        for t in range(steps):
            _, _, terminated, truncated, _ = ending.step(list(drawn[t % _DRAWN_STEPS]))
            for index in (terminated | truncated).nonzero()[:, 0].tolist():
                ending.reset_at(index, return_observations=False)

    ours = {
        name: VmasEnv("balance", NUM_WORLDS, n_agents=NUM_ROBOTS, max_steps=MAX_STEPS, fast_resets=is_fast)
        for name, is_fast in ((OURS_FAST, True), (OURS_SLOW, False))
    }
    return {
        WORLDS: step_endless,
        WORLDS_RESET: step_and_reset,
        **{name: stepping(env, actions) for name, env in ours.items()},
    }


def atari_ways() -> dict[str, Way]:
    """Return the ways of stepping Atari Pong."""
    actions = np.random.default_rng(0).integers(6, size=(_DRAWN_STEPS, NUM_EMULATORS, 1), dtype=np.int32)
    alone = AtariVectorEnv("pong", NUM_EMULATORS, num_threads=1)
    alone.reset(seed=np.arange(NUM_EMULATORS))

    def step_alone(steps: int) -> None:
        for t in range(steps):
            alone.step(actions[t % _DRAWN_STEPS, :, 0])

    return {EMULATORS: step_alone, OURS_ATARI: stepping(AtariEnv("pong", NUM_EMULATORS), actions)}


def particle_ways() -> dict[str, Way]:
    """Return the ways of stepping MPE simple_spread."""
    actions = np.random.default_rng(0).integers(
        5, size=(_DRAWN_STEPS, NUM_PARTICLE_WORLDS, 3), dtype=np.int32
    )
    alone = [simple_spread_v3.parallel_env(max_cycles=MAX_CYCLES) for _ in range(NUM_PARTICLE_WORLDS)]
    for seed, env in enumerate(alone):
        env.reset(seed=seed)
    agents = alone[0].possible_agents

    def step_alone(steps: int) -> None:
        for t in range(steps):
            for env, played in zip(alone, actions[t % _DRAWN_STEPS].tolist(), strict=True):
                if env.agents:
                    env.step(dict(zip(agents, played, strict=True)))
                else:
                    env.reset()

    make = {"_target_": "mpe2.simple_spread_v3.parallel_env", "max_cycles": MAX_CYCLES}
    ours = {
        name: make_env(EnvConfig(make=make, adapter=adapter, global_state=False), NUM_PARTICLE_WORLDS)
        for name, adapter in ((OURS_WRAPPED, "pettingzoo"), (OURS_DIRECT, "auto"))
    }
    return {PARALLEL_API: step_alone, **{name: stepping(env, actions) for name, env in ours.items()}}


def stepping(env: BatchedEnv, actions: np.ndarray) -> Way:
    """Return what steps one of our environments."""
    arrays, result = EnvArrays.allocate(env.spec, env.num_envs), StepArrays.allocate(env.spec, env.num_envs)
    env.reset(range(env.num_envs), arrays)

    def step(steps: int) -> None:
        for t in range(steps):
            env.step(actions[t % _DRAWN_STEPS], result, arrays)

    return step


def measure(ways: dict[str, Way], num_envs: int, steps: int, repeats: int) -> dict[str, list[float]]:
    """Return way -> us of CPU per environment step, of every repeat; the ways take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        print(f"{num_envs} environments, repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for name, way in ways.items():
            started = time.process_time()
            way(steps)
            found[name].append(1e6 * (time.process_time() - started) / (steps * num_envs))
    return found


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 2 if options.quick else 5
    print(machine_facts())
    # whole episodes, so that every repeat has the same share of resets
    found = measure(vmas_ways(), NUM_WORLDS, MAX_STEPS, repeats)
    rows = [
        Comparison(WORLDS, found[WORLDS], found[WORLDS]),
        Comparison(OURS_FAST, found[OURS_FAST], found[WORLDS], 1.25),
        Comparison(WORLDS_RESET, found[WORLDS_RESET], found[WORLDS]),
        Comparison(OURS_SLOW, found[OURS_SLOW], found[WORLDS]),
    ]
    print(f"\nVMAS balance, {NUM_WORLDS} environments, us of CPU per environment step\n")
    print(comparison_table(rows, "ratio to the limit"))
    found = measure(atari_ways(), NUM_EMULATORS, 20 if options.quick else 60, repeats)
    rows = [
        Comparison(EMULATORS, found[EMULATORS], found[EMULATORS]),
        Comparison(OURS_ATARI, found[OURS_ATARI], found[EMULATORS], 1.1),
    ]
    print(f"\nAtari Pong, {NUM_EMULATORS} environments, us of CPU per environment step\n")
    print(comparison_table(rows, "ratio to the limit"))
    # whole episodes and the steps that reset
    found = measure(particle_ways(), NUM_PARTICLE_WORLDS, 2 * (MAX_CYCLES + 1), repeats)
    rows = [
        Comparison(PARALLEL_API, found[PARALLEL_API], found[PARALLEL_API]),
        Comparison(OURS_WRAPPED, found[OURS_WRAPPED], found[PARALLEL_API]),
        Comparison(OURS_DIRECT, found[OURS_DIRECT], found[PARALLEL_API], 0.67),
    ]
    print(f"\nMPE simple_spread, {NUM_PARTICLE_WORLDS} environments, us of CPU per environment step\n")
    print(comparison_table(rows, "ratio to the API"))


if __name__ == "__main__":
    main()
