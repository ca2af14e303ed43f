"""Sample batches from one process to another on this machine: CPU time, throughput, and what others need for it.

Measured for batches [64 steps x 16 environments] of CartPole's size and of 84 x 84 x 4 byte images:

    us CPU per batch   CPU time of both processes with all their threads (libzmq's encrypt), per batch
    batches/s, MB/s    while one process writes and sends as fast as it can and one receives

Every way is run in two fresh processes per repeat; the repeats are interleaved, ratios are taken within a repeat and
their median is given. `memcpy` is one copy of a batch's bytes in one process: writing the batch, and no transport.
Sample Factory's slot design is measured where `faster-fifo` can be imported. Loopback only; about two minutes:

    python benchmarks/sample_stream.py [--quick] [--repeats N]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring.reporting import in_words, machine_facts, markdown_table
from measuring.sample_systems import SYSTEMS, Setting, new_queues

from hpc_marl.base.security import create_keyring
from hpc_marl.data import EnvSpec, SampleLayout

_SHARED, _ZMQ = "hpc_marl, shared memory", "hpc_marl, zmq under CURVE"
_PICKLE, _RAW, _FIFO, _MEMCPY = (
    "zmq ipc + pickle",
    "raw zmq PUSH/PULL under CURVE",
    "slots + faster-fifo",
    "memcpy",
)
_IMAGE_NUMBERS = 84 * 84 * 4 // 4  # as many float32 as make the bytes of an image


@dataclass(frozen=True)
class Payload:
    """What is sent, and for how long."""

    name: str
    layout: SampleLayout
    num_slots: int
    num_batches: dict[str, int]
    """By system; `others` for those not named."""


@dataclass(frozen=True)
class Rate:
    """One measurement."""

    cpu_us: float
    """CPU time of both ends per batch."""
    batches_per_s: float


def payloads(quick: bool) -> list[Payload]:
    """Return what is measured."""
    cartpole = SampleLayout(EnvSpec(observation_size=4, num_actions=2), 64, 16)
    image = SampleLayout(EnvSpec(observation_size=_IMAGE_NUMBERS, num_actions=6), 64, 16)
    if quick:
        return [Payload("[64 x 16] CartPole", cartpole, 8, {"others": 600, _SHARED: 4000, _FIFO: 4000})]
    return [
        Payload("[64 x 16] CartPole", cartpole, 8, {_SHARED: 12000, _FIFO: 12000, "others": 4000}),
        Payload("[64 x 16] images", image, 4, {_SHARED: 120, _FIFO: 120, "others": 24}),
    ]


def _produce(name: str, setting: Setting, num_batches: int, warm_up: int, pipe: Any) -> None:
    producer = SYSTEMS[name][0](setting)
    source = setting.layout.allocate()
    for seq in range(warm_up + num_batches):
        if seq == warm_up:
            started = time.process_time()
        source.reward[0] = seq
        producer.send(source)
    pipe.send(time.process_time() - started)
    pipe.recv()  # until all has arrived
    producer.close()


def _consume(name: str, setting: Setting, num_batches: int, warm_up: int, pipe: Any) -> None:
    consumer = SYSTEMS[name][1](setting)
    pipe.send("ready")
    seq = 0
    while seq < warm_up + num_batches:
        for batch in consumer.batches():
            if batch.reward[0, 0, 0] != seq:
                raise AssertionError(f"{name}: batch {seq} is not what was sent")
            if seq == warm_up:
                started, started_wall = time.process_time(), time.perf_counter()
            seq += 1
    pipe.send((time.process_time() - started, time.perf_counter() - started_wall))
    pipe.recv()
    consumer.close()


def measure(name: str, payload: Payload, directory: Path) -> Rate:
    """Run one system in two new processes."""
    if name == _MEMCPY:
        return measure_memcpy(payload)
    directory.mkdir()
    create_keyring(directory / "auth")
    context = multiprocessing.get_context("spawn")
    queues = new_queues() if name == _FIFO else None
    setting = Setting(directory, payload.layout, payload.num_slots, queues)
    num_batches = payload.num_batches.get(name, payload.num_batches["others"])
    ends = []
    try:
        for run in (_consume, _produce):
            ours, theirs = context.Pipe()
            arguments = (name, setting, num_batches, 2 * payload.num_slots, theirs)
            end = context.Process(target=run, args=arguments, daemon=True)
            end.start()
            theirs.close()
            ends.append((end, ours))
            if run is _consume:
                ours.recv()
        cpu, wall = ends[0][1].recv()
        cpu += ends[1][1].recv()
        for _, pipe in reversed(ends):
            pipe.send("done")
        for end, _ in ends:
            end.join(10.0)
    finally:
        for end, _ in ends:
            end.kill()
    return Rate(1e6 * cpu / num_batches, num_batches / wall)


def measure_memcpy(payload: Payload) -> Rate:
    """Copy the bytes of a batch, again and again, to the slots in turn."""
    size = payload.layout.nbytes
    source = np.ones(size, np.uint8)
    slots = [np.zeros(size, np.uint8) for _ in range(payload.num_slots)]
    count = max(100, min(20_000, 2**30 // size))
    started, cpu = time.perf_counter(), time.process_time()
    for index in range(count):
        np.copyto(slots[index % len(slots)], source)
    wall = time.perf_counter() - started
    return Rate(1e6 * (time.process_time() - cpu) / count, count / wall)


def figure_rows(payload: Payload, results: dict[str, list[Rate]]) -> list[list[str]]:
    """Return one line per system."""
    rows = []
    for name, rates in results.items():
        cpu = [rate.cpu_us for rate in rates]
        speed = statistics.median(rate.batches_per_s for rate in rates)
        rows.append(
            [
                name,
                f"{statistics.median(cpu):,.1f}",
                f"{min(cpu):,.1f} to {max(cpu):,.1f}",
                f"{speed:,.0f}",
                f"{speed * payload.layout.nbytes / 1e6:,.0f}",
                f"{_ratio(results, name, _MEMCPY)[0]:.1%}" if _MEMCPY in results else "-",
            ]
        )
    return rows


def goal_rows(results: dict[str, list[Rate]], is_small: bool) -> list[list[str]]:
    """Return one line per goal that this payload has, with whether it was reached."""
    rows = []
    if is_small:
        cpu = [rate.cpu_us for rate in results[_SHARED]]
        middle = statistics.median(cpu)
        verdict = in_words(middle <= 40)
        rows.append(
            [
                f"{_SHARED}: us CPU",
                f"{middle:.1f}",
                f"{min(cpu):.1f} to {max(cpu):.1f}",
                "at most 40",
                verdict,
            ]
        )
    for name, other, goal in ((_SHARED, _PICKLE, 5.0), (_SHARED, _FIFO, 0.7), (_ZMQ, _RAW, 0.8)):
        if other not in results:
            continue
        middle, low, high = _ratio(results, name, other)
        what = f"{name}: throughput / {other}"
        verdict = in_words(middle >= goal)
        rows.append([what, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"at least {goal:g}", verdict])
    return rows


def _ratio(results: dict[str, list[Rate]], name: str, other: str) -> tuple[float, float, float]:
    """Return median, lowest and highest ratio of two throughputs."""
    pairs = zip(results[name], results[other], strict=True)
    ratios = [ours.batches_per_s / theirs.batches_per_s for ours, theirs in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def run(payload: Payload, repeats: int, systems: Sequence[str]) -> str:
    """Measure one payload; return its tables."""
    results: dict[str, list[Rate]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory(prefix="hpc_marl-benchmark-") as scratch:
        for repeat in range(repeats):
            for number, name in enumerate(systems):
                rate = measure(name, payload, Path(scratch, f"{repeat}-{number}"))
                results[name].append(rate)
                text = f"{rate.cpu_us:,.1f} us CPU per batch, {rate.batches_per_s:,.0f} batches/s"
                print(f"{payload.name} {repeat + 1}/{repeats} {name}: {text}", file=sys.stderr)
    head = [payload.name, "us CPU per batch", "lowest to highest", "batches/s", "MB/s", "of memcpy"]
    goals = ["what", "median", "lowest to highest", "goal", "result"]
    whole = set(systems) >= {_SHARED, _ZMQ, _PICKLE, _RAW, _MEMCPY}
    title = f"{payload.name}: {payload.layout.nbytes:,} bytes per batch, {payload.num_slots} slots"
    is_small = math.prod(payload.layout.shapes()["observation"][0]) < 10**5
    tables = [title, markdown_table(head, figure_rows(payload, results))]
    if whole:
        tables.append(markdown_table(goals, goal_rows(results, is_small)))
    return "\n\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few batches of CartPole's size, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement; default %(default)s")
    parser.add_argument(
        "--only", default="", help="only systems whose name begins with this, without the goals"
    )
    options = parser.parse_args(arguments)
    systems = [name for name in [*SYSTEMS, _MEMCPY] if name.startswith(options.only)]
    for payload in payloads(options.quick):
        print(run(payload, 1 if options.quick else options.repeats, systems), end="\n\n")
    print(machine_facts())
    return 0


if __name__ == "__main__":
    sys.exit(main())
