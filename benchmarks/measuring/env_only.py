"""The limit: one process stepping an actor's environments with random actions, and nothing else.

argv[1] is JSON: overrides, seed, seconds. Prints `ready`, waits for a line, steps, prints the result as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.data import EnvSpec
from hpc_marl.envs import make_env
from hpc_marl.envs.api import EnvArrays, StepArrays

_DRAWN_STEPS = 512  # actions are drawn beforehand, so that only environments are timed


def main(overrides: Sequence[str], seed: int, seconds: float) -> None:
    """Step for `seconds` and report environment steps, seconds and CPU seconds."""
    config = compose_experiment(overrides)
    num_envs = config.actors.num_envs
    env = make_env(config.env, num_envs)
    rng = np.random.default_rng(seed)
    actions = _random_actions(env.spec, num_envs, rng)
    arrays, result = EnvArrays.allocate(env.spec, num_envs), StepArrays.allocate(env.spec, num_envs)
    env.reset([int(word) for word in rng.integers(2**31, size=num_envs)], arrays)
    print("ready", flush=True)
    sys.stdin.readline()
    env_steps, t = 0, 0
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    while (elapsed_s := time.perf_counter() - started_s) < seconds:
        env_steps += int(arrays.alive.any(axis=1).sum())  # the step that only resets is none
        env.step(actions[t % _DRAWN_STEPS], result, arrays)
        t += 1
    cpu_s = time.process_time() - started_cpu_s
    env.close()
    print(json.dumps({"env_steps": env_steps, "elapsed_s": elapsed_s, "cpu_s": cpu_s}))


def _random_actions(spec: EnvSpec, num_envs: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (_DRAWN_STEPS, num_envs, spec.num_agents)
    if spec.is_continuous:
        return rng.uniform(-1.0, 1.0, (*shape, spec.action_size)).astype(np.float32)
    return rng.integers(spec.num_actions, size=shape, dtype=np.int32)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
