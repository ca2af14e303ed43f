"""`python -m tests.unit.algorithms.rank_process SCENARIO RANK SIZE DIRECTORY DEVICE`: one rank of several.

Results are arrays and numbers by name; `what_ranks_found` starts the processes and reads them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.ppo import PPO
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.algorithms.shared_sums import LANE_BYTES
from hpc_marl.base import serialization
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.config import PPOConfig
from hpc_marl.data import SampleBatch
from tests.unit.algorithms.sample_batches import copy_of, make_batch, make_spec

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120.0
TIMEOUTS_S = {"silence": 3.0}
ACTIONS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "masked": {"has_action_mask": True},
    "continuous": {"num_actions": 0, "action_size": 2},
}
KINDS = [
    (recurrent, actions, mode)
    for recurrent in ("none", "gru")
    for actions in ACTIONS
    for mode in ("sync", "async")
]


def make_ppo(
    ranks: Ranks | None = None,
    recurrent: str = "none",
    actions: str = "discrete",
    mode: Any = "sync",
    **config: Any,
) -> PPO:
    """Return a small learner."""
    spec = make_spec(recurrent, **ACTIONS[actions])
    settings = {"critic": spec.critic, "num_epochs": 2, "num_minibatches": 1, "memory_chunk_length": 4}
    changed = PPOConfig(**{**settings, "value_normalization": "popart", **config})
    device = str(getattr(ranks, "_device", "cpu"))
    return PPO(changed, spec, total_env_steps=1000, mode=mode, device=device, seed=5, ranks=ranks)


def part(batch: SampleBatch, rank: int, size: int) -> SampleBatch:
    """Return one rank's environments of a batch."""
    envs = batch.num_envs // size
    cut = slice(rank * envs, (rank + 1) * envs)
    arrays = {n: a if n == "policy_version" else a[:, cut].copy() for n, a in batch.arrays().items()}
    return SampleBatch(**{"state": None, "action_mask": None, "memory": None, **arrays})


def stale(batch: SampleBatch) -> SampleBatch:
    """Return a batch of a policy that was not quite this one."""
    copied = copy_of(batch)
    copied.log_prob += np.random.default_rng(3).normal(0, 0.2, copied.log_prob.shape).astype(np.float32)
    return copied


def weights(ppo: PPO) -> dict[str, Any]:
    """Return everything that the learner keeps, by name."""
    return {
        f"{group}.{name}": array
        for group, arrays in ppo.state_dict()[0].items()
        for name, array in arrays.items()
    }


def halves(ranks: Ranks) -> dict[str, Any]:
    """Two updates of every kind of policy, each rank with its environments of one whole batch."""
    found: dict[str, Any] = {}
    for recurrent, actions, mode in KINDS:
        ppo = make_ppo(ranks, recurrent, actions, mode)
        whole = stale(make_batch(ppo.spec, ppo.actor_weights(), num_envs=8))
        metrics = ppo.update(part(whole, ranks.rank, ranks.size), 0)
        found[f"{recurrent} {actions} {mode}"] = {"weights": weights(ppo), "metrics": metrics}
    return found


def minibatches(ranks: Ranks) -> dict[str, Any]:
    """Several updates with minibatches, twice; one rank's agents are mostly dead, so that it has hardly a row."""
    runs = []
    for _ in range(2):
        ppo = make_ppo(ranks, num_minibatches=4)
        for number in range(4):
            batch = make_batch(ppo.spec, ppo.actor_weights(), seed=10 * number + ranks.rank)
            if ranks.rank == 1:
                batch.alive[number:] = False  # none at all in the first update
                batch.alive[-1] = True
            metrics = ppo.update(batch, 100 * number)
        runs.append({"weights": weights(ppo), "metrics": metrics})
    return {"first": runs[0], "second": runs[1]}


def break_second_loss(ppo: PPO, poison: float) -> None:
    """Let the loss of the second minibatch from now on be no number, whatever makes the steps."""
    calls: list[int] = []
    steps: Any = ppo._steps
    if isinstance(steps, FlatSteps):
        real_gradient = steps._lanes[0]._loss.gradient

        def gradient(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            sums = real_gradient(*args, **kwargs)
            return sums._replace(policy_loss=poison) if len(calls) == 2 else sums

        steps._lanes[0]._loss.gradient = gradient
        return
    real_loss = steps._loss

    def loss(*args: Any) -> Any:
        calls.append(1)
        value, found = real_loss(*args)
        return (value + poison if len(calls) == 2 else value), found

    steps._loss = loss


def broken(ranks: Ranks) -> dict[str, Any]:
    """Numbers that are not finite on one rank only."""
    return {recurrent: _broken(ranks, recurrent) for recurrent in ("none", "gru")}


def _broken(ranks: Ranks, recurrent: str) -> dict[str, Any]:
    ppo = make_ppo(ranks, recurrent, num_epochs=1, num_minibatches=4)
    good = make_batch(ppo.spec, ppo.actor_weights(), seed=ranks.rank)
    bad = copy_of(good)
    if ranks.rank == 1:
        bad.reward[0, 0, 0] = np.nan
    before = weights(ppo)
    update = ppo.update(bad, 0)
    after = weights(ppo)
    if ranks.rank == 1:
        break_second_loss(ppo, float("inf"))
    minibatch = ppo.update(good, 0)
    return {
        "before": before,
        "after": after,
        "update": update,
        "minibatch": minibatch,
        "steps": ppo.optimizer_steps,
        "weights": weights(ppo),
    }


def words(ranks: Ranks) -> dict[str, Any]:
    """Everything that is said rather than learned."""
    shared = torch.Generator().manual_seed(1)
    own = ranks.generator(shared)
    own_part = np.arange(3.0) + 3 * ranks.rank if ranks.rank < 2 else np.zeros(0)
    moments, none = ranks.moments(own_part, np.zeros(0))
    assert np.isnan(none).all()
    return {
        "gather": ranks.gather({"rank": ranks.rank, "text": "a" * ranks.rank * 1000}),
        "broadcast": ranks.broadcast(
            {"array": np.arange(5.0), "one": np.float32(2)} if ranks.rank == 0 else {}
        ),
        "sums": ranks.sums(1.0, float(ranks.rank)),
        "largest": ranks.largest(-float(ranks.rank)),
        "moments": list(moments),
        "shared": int(torch.randint(1000, (), generator=shared)),
        "own": int(torch.randint(1000, (), generator=own)),
    }


def sums_alike(ranks: Ranks) -> dict[str, Any]:
    """The same sums by shared memory and by gloo: many in a row, of all shapes and types that are summed."""
    several: Any = ranks
    shared, generator = several._shared, torch.Generator().manual_seed(ranks.rank)
    tensors = [
        torch.rand(shape, generator=generator) - 0.5 for shape in [(), (1,), (3, 5), (10_000,), (0,)] * 20
    ]
    tensors += [torch.arange(6) * ranks.rank, torch.rand(7, generator=generator, dtype=torch.float64)]
    tensors.append(torch.rand(LANE_BYTES // 4 + 1, generator=generator))
    tensors[3][0] = torch.nan
    by_memory = [ranks.add(tensor).numpy() for tensor in tensors]
    several._shared = None
    by_gloo = [ranks.add(tensor).numpy() for tensor in tensors]
    several._shared = shared
    return {
        "takes": [] if shared is None else [shared.takes(tensor) for tensor in tensors],
        "by_memory": by_memory,
        "by_gloo": by_gloo,
    }


def death(ranks: Ranks) -> dict[str, Any]:
    """The last rank dies; the others' next call says so."""
    if ranks.rank == ranks.size - 1:
        os._exit(9)
    try:
        ranks.sums(1.0)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": ""}


def silence(ranks: Ranks) -> dict[str, Any]:
    """The last rank is there but does not take part; the others' call ends after the timeout."""
    if ranks.rank == ranks.size - 1:
        sys.stdin.read()  # until the test has what it wants
        return {}
    try:
        ranks.sums(1.0)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": ""}


SCENARIOS: dict[str, Callable[[Ranks], dict[str, Any]]] = {
    function.__name__: function
    for function in (halves, minibatches, broken, words, sums_alike, death, silence)
}


def what_ranks_found(scenario: str, size: int, directory: Path, device: str = "cpu") -> list[dict[str, Any]]:
    """Run `size` processes of a scenario; return what each found, by rank ({} of one that died)."""
    directory.mkdir(parents=True, exist_ok=True)
    module = "tests.unit.algorithms.rank_process"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                module,
                scenario,
                str(rank),
                str(size),
                str(directory),
                device,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode in ((0, 9) if scenario == "death" else (0,)), "\n".join(outputs) + output
    paths = [directory / f"{rank}.msgpack" for rank in range(size)]
    return [
        serialization.decode(path.read_bytes(), dict[str, Any]) if path.exists() else {} for path in paths
    ]


def main() -> None:
    """Be one rank."""
    from hpc_marl.workers.rendezvous import join

    scenario, rank, size, directory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    with FileNameResolver(directory / "names") as resolver:
        context: Any = SimpleNamespace(
            experiment_name="exp", trial_name="trial", resolver=resolver, bind_hosts=("127.0.0.1",)
        )
        ranks = join(
            context,
            epoch=3,
            rank=rank,
            world_size=size,
            device=sys.argv[5],
            timeout_s=TIMEOUTS_S.get(scenario, 60.0),
        )
        found = SCENARIOS[scenario](ranks)
        (directory / f"{rank}.msgpack").write_bytes(serialization.encode(found))
        ranks.close()


if __name__ == "__main__":
    main()
