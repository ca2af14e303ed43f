"""What learning from images costs on CPU cores, beside the common way to write it in torch.

    common eager    measuring/common_ppo.py: Nature CNN, torch.distributions.Categorical, torch.optim.Adam
    hpc_marl        the same network, and policy=small_cnn; trainer.precision float32 and bf16

Whole updates of [128 x 16] images of 4 x 84 x 84 bytes in 4 minibatches, one thread, us of CPU per sample and epoch.
Every way is measured in a process of its own, as what becomes of freed memory is a setting of the process; the
processes take turns. About 3 minutes:

    python benchmarks/image_update.py [--quick] [--repeats N]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from gpu_learner import EPOCHS, IMAGE, MINIBATCHES, Task, make_batch, make_ppo
from measuring.common_ppo import CommonPPO, require_all_learned
from measuring.comparisons import Comparison, comparison_table
from measuring.reporting import machine_facts

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import PPOConfig
from hpc_marl.data import EnvSpec

COMMON = "common eager, Nature CNN"
WAYS = {
    COMMON: ("nature_cnn", "common"),
    "hpc_marl, Nature CNN, float32": ("nature_cnn", "float32"),
    "hpc_marl, Nature CNN, bf16": ("nature_cnn", "bf16"),
    "hpc_marl, small_cnn, float32": ("small_cnn", "float32"),
    "hpc_marl, small_cnn, bf16": ("small_cnn", "bf16"),
}
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def make_update(policy: str, way: str, num_envs: int) -> tuple[Callable[[], object], int]:
    """Return what makes one update, and of how many samples and epochs."""
    env = EnvSpec(observation_size=math.prod(IMAGE), image_shape=IMAGE, num_actions=6)
    config = compose_experiment(["experiment=pong_ppo", f"policy={policy}"]).policy
    task = Task(policy, config, env, 128, num_envs)
    batch = make_batch(task, 0)
    if way == "common":
        ppo = PPOConfig(num_epochs=EPOCHS, num_minibatches=MINIBATCHES)
        common = CommonPPO(ppo, env.observation_size, env.num_actions, image_shape=IMAGE)
        return lambda: common.update(batch), EPOCHS * task.samples
    learner = make_ppo(task, "cpu", precision=way)
    return lambda: require_all_learned(learner.update(batch, 0)), EPOCHS * task.samples


def measure_here(name: str, num_envs: int) -> float:
    """Return microseconds of CPU per sample and epoch, of the second update of this process."""
    torch.set_num_threads(1)
    update, samples = make_update(*WAYS[name], num_envs)
    update()
    began_s = time.process_time()
    update()
    return (time.process_time() - began_s) * 1e6 / samples


def measure(name: str, num_envs: int) -> float:
    """Return the same of a new process."""
    command = [sys.executable, __file__, "--way", name, "--envs", str(num_envs)]
    done = subprocess.run(
        command, env={**os.environ, **_THREADS}, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one repeat of small updates")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each way (default: 3)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--envs", type=int, default=16, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way is not None:
        print(measure_here(options.way, options.envs))
        return 0
    repeats, num_envs = (1, 1) if options.quick else (options.repeats, options.envs)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for name, values in found.items():
            values.append(measure(name, num_envs))
    rows = [Comparison(name, values, found[COMMON], None) for name, values in found.items()]
    print(
        f"Learning from images on the CPU, us of CPU per sample and epoch\n\n{comparison_table(rows, 'ratio')}"
    )
    print(f"\n{machine_facts()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
