"""The name service on a local disk: how soon a new name is seen, and how long a listing of thousands takes.

    seen      one process adds names, another waits for each: from `add` to the return of `wait`
    listed    `find_subtree` of 10 000 names, in a process that has never looked, and again

    python benchmarks/name_service.py [--directory DIR] [--names 10000] [--quick]

Run it with --directory on a shared file system to see what that costs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring.comparisons import shown, verdict
from measuring.reporting import machine_facts, markdown_table

from hpc_marl.base.mounts import mount_of
from hpc_marl.base.name_entry_files import EntryFiles, file_name_of, new_entry
from hpc_marl.base.name_resolve_file import FileNameResolver

SEEN_MS, LISTED_MS = 100.0, 100.0
HEADER = ("what", "median", "lowest to highest", "p99", "goal", "")


def wait_for(directory: Path, count: int) -> None:
    """Wait for name after name; print when each was seen."""
    with FileNameResolver(directory) as resolver:
        print("ready", flush=True)
        for number in range(count):
            value = resolver.wait(f"new/{number}", 60.0)
            print(1000 * (time.monotonic() - float(value)), flush=True)


def seen_ms(directory: Path, count: int, pause_s: float) -> list[float]:
    """Return the time from adding a name until another process has it [ms], for every name."""
    command = [sys.executable, __file__, "--wait", str(directory), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None and waiting.stdout.readline() == "ready\n"
        found = []
        with FileNameResolver(directory) as resolver:
            for number in range(count):
                time.sleep(pause_s)
                resolver.add(f"new/{number}", repr(time.monotonic()))
                found.append(float(waiting.stdout.readline()))
    return found


def fill(directory: Path, count: int) -> None:
    """Write many entries, as fast as it goes."""
    files = EntryFiles(directory)
    for number in range(count):
        entry = new_entry("127.0.0.1:4711", None)
        files.replace(
            files.write_temporary(entry), file_name_of(f"exp/trial/worker/actor/{number}"), entry.nonce
        )


def listed_ms(directory: Path, count: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return the times [ms] of a first look and of the second one."""
    first, again = [], []
    for _ in range(repeats):
        with FileNameResolver(directory) as resolver:
            for times in (first, again):
                started = time.perf_counter()
                names = resolver.find_subtree("exp/trial")
                times.append(1000 * (time.perf_counter() - started))
                assert len(names) == count
    return first, again


def row(what: str, values: list[float], goal: float, judged: float) -> tuple[str, ...]:
    """Return one row; `judged` is what the goal is about."""
    p99 = statistics.quantiles(values, n=100)[98] if len(values) >= 100 else max(values)
    spread = f"{shown(min(values))} to {shown(max(values))} ms"
    median = f"{shown(statistics.median(values))} ms"
    return (what, median, spread, f"{shown(p99)} ms", f"<= {goal:g} ms", verdict(judged, goal))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to make names; default: a temporary one")
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="few names")
    parser.add_argument("--wait", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wait is not None:
        wait_for(Path(options.wait[0]), int(options.wait[1]))
        return
    count, num_seen, repeats = (500, 20, 3) if options.quick else (options.names, 300, 15)
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        seen = seen_ms(Path(root) / "seen", num_seen, 0.02)
        late = seen_ms(Path(root) / "late", max(num_seen // 50, 3), 1.5)
        with FileNameResolver(Path(root) / "many"):
            fill(Path(root) / "many", count)
        first, again = listed_ms(Path(root) / "many", count, repeats)
        kind = mount_of(Path(root))[0]
    p99 = statistics.quantiles(seen, n=100)[98]
    rows = [
        row("a new name is seen, awaited for 20 ms", seen, SEEN_MS, p99),
        row("a new name is seen, awaited for 1.5 s", late, SEEN_MS, max(late)),
        row(f"{count:,} names are listed, first look", first, LISTED_MS, statistics.median(first)),
        row(f"{count:,} names are listed, again", again, LISTED_MS, statistics.median(again)),
    ]
    print(machine_facts() + f", file system {kind}")
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
