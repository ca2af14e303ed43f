"""What an actor's step costs around `env.step`: microseconds of CPU per agent step.

    inference   the policy's forward pass, sampling and log-probabilities, written into the batch
    write       noise, views, rewards, episodes: what filling and finishing a batch takes
    other       credits, parameters, the worker's loop
    limit       the same network's products and tanh in numpy, and nothing else

A real ActorWorker in this process, fed and drained through shared memory, with environments whose steps cost nothing.
Its parts are measured in runs of their own, with a stopwatch that costs more (about 1 us per step of all
environments) than that of the total. Interleaved repeats, ratios within a repeat, medians.

Then what the adapters add to each step of environments that do nothing, what natively vectorised CartPole costs with
everything, environment included, and what share of an actor's CPU time real environments get: what it reaches of their
own rate. About 90 seconds on one core:

    taskset -c 0 python benchmarks/actor_step.py [--quick] [--repeats N]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as workers have it; before numpy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from measuring.actor_rig import ActorRig, Spent, stopwatch_of_cpu_time
from measuring.adapter_costs import ADAPTERS, AdapterCost
from measuring.bare_network import bare_pass_s
from measuring.comparisons import shown, verdict
from measuring.reporting import in_words, machine_facts, markdown_table

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import EnvConfig, PolicyConfig

STEP_HEADER = (
    *("what", "environments", "us per agent step", "lowest to highest"),
    *("inference", "write", "other", "limit", "of the limit", "goal", "in words"),
)
ADAPTER_HEADER = ("what", "environments", "us per step", "lowest to highest", "bare loop", "ratio", "added")
VECTOR_HEADER = (
    "what",
    "environments",
    "us per env_step",
    "lowest to highest",
    "env_steps/s",
    "goal",
    "in words",
)
ENV_HEADER = (
    "what",
    "environments",
    "actor",
    "env only",
    "of env only",
    "lowest to highest",
    "goal",
    "in words",
)
GOAL_US, GOAL_ENVS, VECTOR_GOAL_US, ENV_GOAL = 3.0, 32, 2.5, 0.7
FREE = "measuring.actor_rig.FreeEnv"
MLP, GRU = PolicyConfig(), PolicyConfig(recurrent="gru")
CASES: dict[str, tuple[dict[str, Any], PolicyConfig]] = {
    "1 agent, 4 numbers, 2 actions": ({"observation_size": 4, "num_actions": 2}, MLP),
    "2 agents, 15 numbers, 6 actions": ({"num_agents": 2, "observation_size": 15, "num_actions": 6}, MLP),
    "2 agents, 6 actions, masked": (
        {"num_agents": 2, "observation_size": 15, "num_actions": 6, "has_action_mask": True},
        MLP,
    ),
    "1 agent, 2 continuous actions": ({"observation_size": 4, "action_size": 2}, MLP),
    "1 agent, 2 actions, GRU": ({"observation_size": 4, "num_actions": 2}, GRU),
}
EXPERIMENTS = ("cartpole_ppo", "lbf_mappo", "mpe_spread_mappo", "rware_mappo")
VECTOR_CARTPOLE = {
    "_target_": "gymnasium.make_vec",
    "id": "CartPole-v1",
    "vectorization_mode": "vector_entry_point",
}


@dataclass
class StepRow:
    """One kind of environment and policy, one number of environments."""

    name: str
    num_envs: int
    rig: ActorRig
    spent: list[Spent] = field(default_factory=list)
    parts: list[Spent] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def measure(self, num_steps: int) -> None:
        """Measure once, for so many steps of all environments."""
        self.limits.append(1e6 * bare_pass_s(self.rig.spec, self.num_envs, num_steps))
        self.spent.append(self.rig.measure(num_steps))
        with stopwatch_of_cpu_time():
            self.parts.append(self.rig.measure(num_steps))

    def costs(self) -> list[float]:
        """Return microseconds of CPU per agent step, one of each repeat."""
        return [1e6 * spent.cpu_s / spent.env_steps / self.rig.num_agents for spent in self.spent]

    def part(self, activity: str) -> float:
        """Return the median microseconds per agent step of one activity."""
        agents = self.rig.num_agents
        return median(1e6 * part.seconds[activity] / part.env_steps / agents for part in self.parts)

    def cells(self) -> list[str]:
        """Return the row of the first table."""
        costs = self.costs()
        limits = [limit / self.num_envs / self.rig.num_agents for limit in self.limits]
        goal = GOAL_US if self.num_envs == GOAL_ENVS else None
        return [
            *(self.name, str(self.num_envs), f"{median(costs):.2f}", f"{min(costs):.2f} to {max(costs):.2f}"),
            *(f"{self.part(activity):.2f}" for activity in ("inference", "write", "other")),
            f"{median(limits):.2f}",
            f"{median(cost / limit for cost, limit in zip(costs, limits, strict=True)):.1f} x",
            "-" if goal is None else f"<= {goal:g}",
            verdict(median(costs), goal) or "-",
        ]

    def vector_cells(self) -> list[str]:
        """Return the row of the table of vectorised environments."""
        costs = self.costs()
        return [
            *(self.name, str(self.num_envs), f"{median(costs):.2f}", f"{min(costs):.2f} to {max(costs):.2f}"),
            *(shown(1e6 / median(costs)), f"<= {VECTOR_GOAL_US:g}", verdict(median(costs), VECTOR_GOAL_US)),
        ]


class EnvRow:
    """Real environments: what share of an actor's CPU time goes to their own steps."""

    def __init__(self, experiment: str, num_envs: int, stack: ExitStack) -> None:
        config = compose_experiment([f"experiment={experiment}"])
        self._name, self._num_envs = experiment, num_envs
        self._rig = stack.enter_context(ActorRig(config.env, num_envs, config.policy))
        self._spent: list[Spent] = []

    def measure(self, num_steps: int) -> None:
        """Measure once."""
        with stopwatch_of_cpu_time():
            self._spent.append(self._rig.measure(num_steps))

    def cells(self) -> list[str]:
        """Return the row of the table of real environments."""
        shares = [spent.seconds["env"] / spent.cpu_s for spent in self._spent]
        share = median(shares)
        ours = median(1e6 * spent.cpu_s / spent.env_steps for spent in self._spent)
        bare = median(1e6 * spent.seconds["env"] / spent.env_steps for spent in self._spent)
        return [
            *(self._name, str(self._num_envs), f"{ours:.1f}", f"{bare:.1f}", f"{share:.0%}"),
            *(f"{min(shares):.0%} to {max(shares):.0%}", f">= {ENV_GOAL:.0%}"),
            in_words(share >= ENV_GOAL),
        ]


def adapter_cells(cost: AdapterCost) -> list[str]:
    """Return the row of the table of adapters."""
    ours, bare = cost.ours, cost.bare
    ratio = median(one / other for one, other in zip(ours, bare, strict=True))
    added = median(one - other for one, other in zip(ours, bare, strict=True))
    spread = f"{min(ours):.2f} to {max(ours):.2f}"
    return [
        *(cost.name, str(cost.num_envs), f"{median(ours):.2f}", spread),
        *(f"{median(bare):.2f}", f"{ratio:.1f} x", f"{added:.2f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats (default 7)")
    parser.add_argument("--quick", action="store_true", help="a fast look: few rows, one short repeat")
    options = parser.parse_args(arguments)
    repeats, num_steps = (1, 128) if options.quick else (options.repeats, 768)
    sizes = (GOAL_ENVS,) if options.quick else (1, 8, GOAL_ENVS, 128)
    cases = dict(list(CASES.items())[: 1 if options.quick else None])
    with ExitStack() as stack:

        def row(name: str, make: dict[str, Any], policy: PolicyConfig, num_envs: int) -> StepRow:
            rig = stack.enter_context(ActorRig(EnvConfig(make=make), num_envs, policy))
            return StepRow(name, num_envs, rig)

        steps = [
            row(name, {"_target_": FREE, **make}, policy, num_envs)
            for name, (make, policy) in cases.items()
            for num_envs in sizes
        ]
        vectors = [row("CartPole, vectorised", VECTOR_CARTPOLE, MLP, num) for num in (256, 1024)]
        adapters = [AdapterCost(name, num, make) for name, make in ADAPTERS.items() for num in (1, 8, 32)]
        real = [EnvRow(experiment, 16, stack) for experiment in (() if options.quick else EXPERIMENTS)]
        for repeat in range(repeats):
            print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
            for one in (*steps, *vectors):
                one.measure(num_steps)
            for adapter in adapters:
                adapter.measure(num_steps // 4)
            for env in real:
                env.measure(num_steps // 8)
    print(machine_facts())
    print("\nAround env.step, us of CPU per agent step, 64x64 network (GRU: 64):\n")
    print(markdown_table(STEP_HEADER, [one.cells() for one in steps]))
    print("\nAdapters, us of CPU per step of one environment that does nothing:\n")
    print(markdown_table(ADAPTER_HEADER, [adapter_cells(one) for one in adapters]))
    print("\nA natively vectorised environment, all included:\n")
    print(markdown_table(VECTOR_HEADER, [one.vector_cells() for one in vectors]))
    if real:
        print("\nReal environments, us of CPU per env_step:\n")
        print(markdown_table(ENV_HEADER, [one.cells() for one in real]))


if __name__ == "__main__":
    main()
