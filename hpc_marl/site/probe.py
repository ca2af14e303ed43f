"""What `hpc-marl doctor` runs on a node: say what it is like, answer, call the others, end.

python -m hpc_marl.site.probe --run-dir DIR --name cpu --peers login,gpu --seconds 300
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.errors import HpcMarlError, NameWaitTimeoutError
from hpc_marl.exit_codes import EXIT_FAILED
from hpc_marl.site.exchange import NUM_PINGS, Exchange, Pong
from hpc_marl.site.machine_facts import gather_facts, gather_gpu_facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one node's part of the visit and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hpc_marl.site.probe", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="directory of the visit")
    parser.add_argument("--name", required=True, help="of this probe")
    parser.add_argument("--peers", default="", help="machines to call, joined by commas")
    parser.add_argument("--interface", help="as cluster.interface")
    parser.add_argument("--ports", type=int, nargs=2, default=(), help="as cluster.port_range")
    parser.add_argument("--seconds", type=float, default=300.0, help="end after this long in any case")
    options = parser.parse_args(arguments)
    directory = RunDirectory.at(options.run_dir)
    peers = [peer for peer in options.peers.split(",") if peer]
    try:
        with Exchange(directory, options.name, options.interface, tuple(options.ports)) as exchange:
            _take_part(exchange, directory, peers, time.monotonic() + options.seconds)
    except NameWaitTimeoutError as error:
        sys.stderr.write(f"nobody has asked for long: {error}\n")
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    return 0


def _take_part(exchange: Exchange, directory: RunDirectory, peers: Sequence[str], deadline: float) -> None:
    def left_s() -> float:
        return max(0.0, deadline - time.monotonic())

    name = exchange.name
    facts = gather_facts(directory.path, exchange.hosts, exchange.port, exchange.problem)
    exchange.tell(f"facts/{name}", facts)
    for number in range(NUM_PINGS):
        exchange.hear(f"ping/{name}/{number}", left_s())
        exchange.tell(f"pong/{name}/{number}", Pong(time.time()))
    exchange.tell(f"gpu/{name}", gather_gpu_facts())
    for peer in peers:
        # Whether it listens stands in its facts; without waiting for those, one that is late would look silent.
        exchange.hear(f"facts/{peer}", left_s())
        exchange.tell(f"reach/{name}/{peer}", exchange.reach(peer))
    exchange.hear("bye", left_s())


if __name__ == "__main__":
    sys.exit(main())
