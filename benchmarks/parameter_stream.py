"""Parameters from one trainer to its readers: latency on one node, throughput across sockets, and who waits for whom.

1. 1 MB to two readers on this node: each is a process that polls and sleeps 50 us in turn, as an actor polls between
   steps. Measured from the call of publish() to the moment at which both hold a copy of their own, for hpc_marl and for
   zmq PUB/SUB with pickle; next to it the time of publish() and of the poll that reads. The limit is three copies of
   the bytes one after another: into shared memory and out of it twice.
2. A large network to many readers by ZMQ under CURVE, all at once: bytes that arrived per second, until the last reader
   has all of them, next to what one raw PUSH/PULL under CURVE carries of the same messages. Each reader is a process.
3. publish() while one reader of each transport is stopped (SIGSTOP) in the middle of it all, next to one copy.

Repeats are interleaved, ratios are taken within a repeat and their median is given. Loopback only; about two minutes:

    python benchmarks/parameter_stream.py [--quick] [--repeats N] [--megabytes N] [--readers N]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from measuring.parameter_systems import SYSTEMS, OurReader, Setting
from measuring.reporting import in_words, machine_facts, markdown_table

from hpc_marl.base.security import create_keyring

_SHARED, _ZMQ, _PUBSUB = SYSTEMS
_HEAD = ["what", "median", "lowest to highest", "ratio", "goal", "result"]
_NAP_S = 50e-6
_PAUSE_S = 0.005  # between two versions
_AGAIN_S = 2.0
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Latency:
    """One version to both readers, in ms."""

    total: float
    publish: float
    read: float
    """The longer of the two polls that read it."""


def shapes_of(num_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return a few arrays that are so large together."""
    width = max(num_bytes // 4 // 4, 1)
    return {f"layer{i}": (width,) for i in range(4)}


def follow(name: str, setting: Setting, naps: bool, pipe: Any) -> None:
    """Run one reader: tell of every version when it was there, and how long the poll that read it took."""
    reader = SYSTEMS[name][1](setting)
    parent, last = os.getppid(), -1
    while os.getppid() == parent:
        if naps:
            time.sleep(_NAP_S)
            started = time.monotonic()
            version = reader.poll()
        else:
            assert isinstance(reader, OurReader)
            started = time.monotonic()
            found = reader.reader.wait(last + 1, 0.5)
            version = None if found is None else found.policy_version
        if version is not None:
            ended, last = time.monotonic(), version
            pipe.send((version, ended, ended - started))


@contextlib.contextmanager
def readers(count: int, name: str, setting: Setting, *, naps: bool) -> Iterator[list[tuple[Any, Any]]]:
    """Start readers, each a new process; yield (process, pipe) of each and end them."""
    context = multiprocessing.get_context("spawn")
    started = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=follow, args=(name, setting, naps, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def answers(ends: Sequence[tuple[Any, Any]], version: int) -> list[tuple[float, float]]:
    """Wait until every reader has this version; return when, and how long it read."""
    found = []
    for _, pipe in ends:
        has, when, took = -1, 0.0, 0.0
        while has < version:
            if not pipe.poll(_TIMEOUT_S):
                raise RuntimeError(f"a reader did not get version {version} in {_TIMEOUT_S:.0f} s")
            has, when, took = pipe.recv()
        found.append((when, took))
    return found


def new_setting(scratch: Path, num_bytes: int) -> Setting:
    """Return the setting of a run of its own."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    create_keyring(directory / "auth")
    return Setting(directory, shapes_of(num_bytes))


def weights_of(setting: Setting) -> dict[str, np.ndarray[Any, Any]]:
    """Return weights that are in use: every page of them was written."""
    return {name: np.ones(shape, np.float32) for name, shape in setting.shapes.items()}


def settle(publisher: Any, ends: Sequence[tuple[Any, Any]], weights: Any, is_ours: bool = True) -> int:
    """Publish until every reader has the newest version; return its number."""
    deadline = time.monotonic() + _TIMEOUT_S
    version, missing = 0, True
    again_s = _TIMEOUT_S if is_ours else _AGAIN_S
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError("a reader found no publisher")
        version += 1
        publisher.publish(version, weights)
        again = time.monotonic() + again_s
        # A subscriber gets only what is published after it has come, so there may have to be more.
        while (missing := any(not pipe.poll(0) for _, pipe in ends)) and time.monotonic() < again:
            time.sleep(0.01)
    answers(ends, version)
    return version


def measure_latency(name: str, scratch: Path, num_bytes: int, count: int) -> Latency:
    """Return the medians over some versions."""
    setting = new_setting(scratch, num_bytes)
    weights, publisher = weights_of(setting), SYSTEMS[name][0](setting)
    found = []
    with readers(2, name, setting, naps=True) as ends:
        version = settle(publisher, ends, weights, is_ours=name != _PUBSUB)
        for number in range(version + 1, version + 1 + count):
            time.sleep(_PAUSE_S)
            started = time.monotonic()
            publisher.publish(number, weights)
            published = time.monotonic()
            got = answers(ends, number)
            found.append(
                (max(when for when, _ in got) - started, published - started, max(took for _, took in got))
            )
    publisher.close()
    return Latency(*(1000 * statistics.median(column) for column in zip(*found, strict=True)))


class Copy:
    """One copy to either of two places, after a pause: it finds memory as cold as what is published."""

    def __init__(self, num_bytes: int) -> None:
        self._source = np.ones(num_bytes // 4, np.float32)
        self._targets = [np.ones(num_bytes // 4, np.float32) for _ in range(2)]

    def measure(self) -> float:
        """Return the seconds it takes."""
        time.sleep(_PAUSE_S)
        self._targets.reverse()
        started = time.monotonic()
        np.copyto(self._targets[0], self._source)
        return time.monotonic() - started


def measure_many(scratch: Path, num_bytes: int, count: int) -> float:
    """Return the bytes/s of one version to `count` readers by ZMQ, all together."""
    setting = new_setting(scratch, num_bytes)
    weights, publisher = weights_of(setting), SYSTEMS[_ZMQ][0](setting)
    with readers(count, _ZMQ, setting, naps=False) as ends:
        version = settle(publisher, ends, weights)
        time.sleep(0.2)  # by then each has asked for the next
        started = time.monotonic()
        publisher.publish(version + 1, weights)
        last = max(when for when, _ in answers(ends, version + 1))
    publisher.close()
    return count * setting.nbytes / (last - started)


def _pull(setting: Setting, count: int, pipe: Any) -> None:
    context = setting.open_context()
    bound = context.sockets.bind(zmq.PULL, ["127.0.0.1"], options={zmq.RCVHWM: 2})
    pipe.send((bound.port, bound.public_key))
    bound.socket.recv(copy=False)
    started = time.monotonic()
    for _ in range(count):
        bound.socket.recv(copy=False)
    pipe.send(time.monotonic() - started)
    pipe.recv()
    context.close()


def measure_raw(scratch: Path, num_bytes: int, count: int) -> float:
    """Return the bytes/s of one raw PUSH/PULL under CURVE, each version one message."""
    setting = new_setting(scratch, num_bytes)
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_pull, args=(setting, count, theirs), daemon=True)
    process.start()
    port, key = ours.recv()
    context = setting.open_context()
    socket = context.sockets.connect(zmq.PUSH, ["127.0.0.1"], port, key, options={zmq.SNDHWM: 2})
    socket.set(zmq.SNDTIMEO, int(1000 * _TIMEOUT_S))
    flat = np.ones(num_bytes, np.uint8)
    for _ in range(count + 1):
        socket.send(flat.data, copy=False)
    rate = count * num_bytes / float(ours.recv())
    ours.send("done")
    process.join(10.0)
    context.close()
    return rate


def measure_stopped(scratch: Path, num_bytes: int, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds of publish() while a reader of each transport is stopped, and of one copy after each."""
    setting = new_setting(scratch, num_bytes)
    weights, publisher = weights_of(setting), SYSTEMS[_SHARED][0](setting)
    copy = Copy(num_bytes)
    with (
        readers(1, _SHARED, setting, naps=True) as near,
        readers(1, _ZMQ, setting, naps=False) as far,
    ):
        version = settle(publisher, [*near, *far], weights)
        publisher.publish(version + 1, weights)  # either slot is in use from here on
        time.sleep(0.1)
        for process, _ in (*near, *far):
            os.kill(process.pid, signal.SIGSTOP)
        times, copies = [], []
        for number in range(version + 2, version + 2 + count):
            time.sleep(_PAUSE_S)
            started = time.monotonic()
            publisher.publish(number, weights)
            times.append(time.monotonic() - started)
            copies.append(copy.measure())
        for process, _ in (*near, *far):
            os.kill(process.pid, signal.SIGCONT)
        answers([*near, *far], version + 1 + count)
    publisher.close()
    return times, copies


def row(what: str, values: Sequence[float], unit: str, *judged: str) -> list[str]:
    """Return a line of a table; `judged` is ratio, goal and result, as far as there are any."""
    ratio, goal, result = (*judged, "-", "-", "-")[:3]
    middle = f"{statistics.median(values):,.2f} {unit}"
    return [what, middle, f"{min(values):,.2f} to {max(values):,.2f}", ratio, goal, result]


def latency_table(scratch: Path, repeats: int, count: int) -> str:
    """Measure part 1."""
    size = 2**20
    results: dict[str, list[Latency]] = {_SHARED: [], _PUBSUB: []}
    copies = []
    for _ in range(repeats):
        for name, found in results.items():
            found.append(measure_latency(name, scratch, size, count))
            print(f"1 MB to two readers, {name}: {found[-1]}", file=sys.stderr)
        copy = Copy(size)
        copies.append(3000 * statistics.median(copy.measure() for _ in range(count)))
    ours, peers = results[_SHARED], results[_PUBSUB]
    rows = []
    for name, found in results.items():
        against = [one.total / copy for one, copy in zip(found, copies, strict=True)]
        total = [one.total for one in found]
        goal = ("at most 0.5 ms", in_words(statistics.median(total) <= 0.5)) if found is ours else ("-", "-")
        rows.append(row(f"{name}: to both", total, "ms", f"{statistics.median(against):.1f} x copies", *goal))
        rows.append(row(f"{name}: publish()", [one.publish for one in found], "ms"))
        rows.append(row(f"{name}: poll() that reads", [one.read for one in found], "ms"))
    rows.append(row("three copies", copies, "ms"))
    faster = statistics.median(peer.total / own.total for peer, own in zip(peers, ours, strict=True))
    title = f"1 MB to two readers on one node: {faster:.1f} times as fast as PUB/SUB"
    return f"{title}\n\n{markdown_table(_HEAD, rows)}"


def many_table(scratch: Path, repeats: int, megabytes: int, count: int) -> str:
    """Measure part 2."""
    ours, raw = [], []
    size = megabytes * 10**6
    for _ in range(repeats):
        ours.append(measure_many(scratch, size, count) / 1e6)
        raw.append(measure_raw(scratch, size, 4) / 1e6)
        print(f"{megabytes} MB: {ours[-1]:.0f} MB/s, raw {raw[-1]:.0f} MB/s", file=sys.stderr)
    share = statistics.median(own / other for own, other in zip(ours, raw, strict=True))
    rows = [
        row(
            f"{_ZMQ}: {count} readers together",
            ours,
            "MB/s",
            f"{share:.0%} of raw",
            "at least 70%",
            in_words(share >= 0.7),
        ),
        row("raw zmq PUSH/PULL under CURVE: one stream", raw, "MB/s"),
    ]
    return f"{megabytes} MB to {count} readers by ZMQ\n\n{markdown_table(_HEAD, rows)}"


def stopped_table(scratch: Path, megabytes: int, count: int) -> str:
    """Measure part 3."""
    size = megabytes * 10**6
    times, copies = ([1000 * one for one in column] for column in measure_stopped(scratch, size, count))
    ratio = statistics.median(own / copy for own, copy in zip(times, copies, strict=True))
    rows = [
        row("publish()", times, "ms", f"{ratio:.2f} x one copy", "at most 2 x", in_words(ratio <= 2)),
        row("one copy", copies, "ms"),
    ]
    return f"{megabytes} MB published while a reader of each transport is stopped\n\n{markdown_table(_HEAD, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little data, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement; default %(default)s")
    parser.add_argument(
        "--megabytes", type=int, default=200, help="of the large network; default %(default)s"
    )
    parser.add_argument("--readers", type=int, default=16, help="of the large network; default %(default)s")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats, options.megabytes, options.readers = 1, min(options.megabytes, 5), 2
    with tempfile.TemporaryDirectory(prefix="hpc_marl-benchmark-") as directory:
        scratch = Path(directory)
        print(latency_table(scratch, options.repeats, 20 if options.quick else 200), end="\n\n")
        print(many_table(scratch, options.repeats, options.megabytes, options.readers), end="\n\n")
        print(stopped_table(scratch, min(options.megabytes, 50), 5 if options.quick else 20), end="\n\n")
    print(machine_facts())
    return 0


if __name__ == "__main__":
    sys.exit(main())
