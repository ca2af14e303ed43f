"""The limit of inference: a policy network's products and activations in numpy, and nothing else."""

from __future__ import annotations

import itertools
import time

import numpy as np

from hpc_marl.policies.spec import PolicySpec


def bare_pass_s(spec: PolicySpec, num_envs: int, count: int) -> float:
    """Return the CPU seconds of one pass for all agents of `num_envs` environments, measured over `count` of them."""
    rows, rng = num_envs * spec.env.num_agents, np.random.default_rng(0)
    widths = [spec.env.observation_size, *spec.policy.hidden_sizes]
    layers = [
        (_normal(rng, wide, out), np.empty((rows, out), np.float32))
        for wide, out in itertools.pairwise(widths)
    ]
    observation = _normal(rng, rows, widths[0])
    head_input = spec.memory_size or widths[-1]
    head, output = _normal(rng, head_input, spec.output_size), np.empty((rows, spec.output_size), np.float32)
    memory, gates = _normal(rng, rows, head_input), np.empty((rows, 3 * spec.memory_size), np.float32)
    of_input = _normal(rng, widths[-1], 3 * spec.memory_size)
    of_memory = _normal(rng, head_input, 3 * spec.memory_size)
    started_s = time.thread_time()
    for _ in range(count):
        features = observation
        for weight, out in layers:
            np.dot(features, weight, out)
            np.tanh(out, out)
            features = out
        if spec.memory_size:
            np.dot(features, of_input, gates)
            np.dot(memory, of_memory, gates)
            np.tanh(gates, gates)
            features = memory
        np.dot(features, head, output)
    return (time.thread_time() - started_s) / count


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return 0.1 * rng.standard_normal(shape, np.float32)
