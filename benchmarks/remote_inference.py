"""What it costs that a policy worker chooses the actions, and how environment groups hide it.

    steps/s of one actor worker whose network costs nothing: in the actor itself (inline), and in a policy worker of
    the same node by shared memory, by zmq under CURVE as across nodes, and by pickle over zmq REQ/REP (the peer),
    without keys and under CURVE: how much of the difference between it and ours is the price of keys

    steps/s with a joint step of 1 ms and a network of 4 ms in a policy worker, by the number of groups, against the
    same environments with a network that takes no time

Real workers in two processes, CartPole as gymnasium's vectorised class; the batches go to a receiver in the actor's
process. Interleaved repeats, ratios within a repeat, medians. Loopback only; about 100 seconds on two cores, which
should be idle: two processes that answer each other suffer more from a third one than one process alone does.

    python benchmarks/remote_inference.py [--quick] [--repeats N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import zmq
from measuring.inference_rig import MeasuredActor, Trial, free_inline_networks
from measuring.pickle_inference import PickleActing, serve_pickle
from measuring.reporting import in_words, machine_facts, markdown_table

HEADER = ("what", "env_steps/s", "lowest to highest", "ratio", "ratio lowest to highest", "goal", "in words")
INLINE, SHARED, PACKED = "inline", "shared memory", "zmq under CURVE, packed frames"
PICKLE, PICKLE_CURVE = "pickle, zmq REQ/REP", "pickle, zmq REQ/REP under CURVE"
SHAPES = ((8, 1), (8, 2), (32, 1), (32, 2))
"""Environments of a group, groups."""
GOALS = {(SHARED, (32, 2)): 0.6}
PACKED_GOAL = 1.0
"""Of the peer with the same security."""
GROUPS = (1, 2, 4, 8)
NO_LATENCY = "network of no time, inline"
LATENCY_GOALS = {8: 0.9}
CARTPOLE = {
    "_target_": "gymnasium.make_vec",
    "id": "CartPole-v1",
    "vectorization_mode": "vector_entry_point",
}
SLOW = {"_target_": "hpc_marl.envs.stand_in.StandInEnv", "step_s": 0.001}
NETWORK_S = 0.004


@dataclass
class Series:
    """One row: what was measured in every repeat, and its goal as a share of the reference."""

    name: str
    actor: MeasuredActor | None
    """None where the rates are those of another row, compared with another reference."""
    reference: Series | None
    goal: float | None = None
    rates: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Return the row of the table."""
        cells = [
            self.name,
            f"{statistics.median(self.rates):,.0f}",
            f"{min(self.rates):,.0f} to {max(self.rates):,.0f}",
        ]
        if self.reference is None:
            return [*cells, "1.00", "-", "-", "the reference"]
        ratios = [ours / theirs for ours, theirs in zip(self.rates, self.reference.rates, strict=True)]
        ratio = statistics.median(ratios)
        cells += [f"{ratio:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
        if self.goal is None:
            return [*cells, "-", "-"]
        return [*cells, f">= {self.goal:.2f}", in_words(ratio >= self.goal)]


def free_network(trial: Trial, shapes: Sequence[tuple[int, int]]) -> list[Series]:
    """Return the rows of the first table."""
    peers = {PICKLE: _start_peer(trial, None), PICKLE_CURVE: _start_peer(trial, zmq.curve_keypair())}
    rows: list[Series] = []
    for shape in shapes:
        reference: Series | None = None
        for system, inference, transport in (
            (INLINE, "inline", "auto"),
            (SHARED, "remote", "auto"),
            (PACKED, "remote", "zmq"),
            (PICKLE, "remote", "zmq"),
            (PICKLE_CURVE, "remote", "zmq"),
        ):
            actor = trial.new_actor(inference, transport, *shape)
            if system in peers:
                actor.use(partial(PickleActing, port=peers[system][0], server_key=peers[system][1]))
            name = f"{shape[0]} environments x {shape[1]}: {system}"
            rows.append(Series(name, actor, reference, GOALS.get((system, shape))))
            reference = reference or rows[-1]
        *_, packed, _, peer = rows
        rows.append(Series(f"{packed.name}, of {PICKLE_CURVE}", None, peer, PACKED_GOAL, packed.rates))
    return rows


def _start_peer(trial: Trial, keys: tuple[bytes, bytes] | None) -> tuple[int, bytes | None]:
    """Return port and public key of a peer's server."""
    public, secret = keys or (None, None)
    ours, theirs = multiprocessing.Pipe()
    trial.start(serve_pickle, theirs, secret)
    return ours.recv(), public


def slow_network(trial: Trial, group_counts: Sequence[int]) -> list[Series]:
    """Return the rows of the second table."""
    reference = Series(NO_LATENCY, trial.new_actor("inline", "auto", 8, 1), None)
    return [
        reference,
        *(
            Series(
                f"network of {1000 * NETWORK_S:.0f} ms, remote, {count} groups",
                trial.new_actor("remote", "auto", 8, count),
                reference,
                LATENCY_GOALS.get(count),
            )
            for count in group_counts
        ),
    ]


def measure(tables: Sequence[Sequence[Series]], repeats: int, seconds: float) -> None:
    """Measure all rows in turn, again and again."""
    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for rows in tables:
            for row in rows:
                if row.actor is not None:
                    row.rates.append(row.actor.rate(seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats (default 7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement (default 0.5)")
    parser.add_argument("--quick", action="store_true", help="a fast look: few rows, one short repeat")
    options = parser.parse_args(arguments)
    repeats, seconds = (1, 0.2) if options.quick else (options.repeats, options.seconds)
    with tempfile.TemporaryDirectory() as directory, free_inline_networks():
        fast, slow = Trial(Path(directory, "fast"), CARTPOLE), Trial(Path(directory, "slow"), SLOW)
        try:
            fast.start_policy(0.0)
            slow.start_policy(NETWORK_S)
            tables = (
                free_network(fast, SHAPES[-1:] if options.quick else SHAPES),
                slow_network(slow, GROUPS[-1:] if options.quick else GROUPS),
            )
            measure(tables, repeats, seconds)
        finally:
            slow.close()
            fast.close()
    print(machine_facts())
    print("\nA network that costs nothing; ratios to inline, or to what is named:\n")
    print(markdown_table(HEADER, [row.cells() for row in tables[0]]))
    print("\nA joint step of 1 ms; ratios to a network of no time:\n")
    print(markdown_table(HEADER, [row.cells() for row in tables[1]]))


if __name__ == "__main__":
    main()
