"""A stand-in for a host process with a nursery: launches what standard input says, and says what becomes of it.

Its workers say what they are, and do what their name says.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from hpc_marl.base.early_host import Orders
from hpc_marl.workers.nursery import Nursery, NurseryChild, start_nursery
from hpc_marl.workers.process_identity import die_with_parent, leave


def work(arguments: list[str]) -> int:
    """Be the worker."""
    import numpy as np
    import zmq

    if not die_with_parent(int(arguments[-1])):
        return 1
    print(
        json.dumps(
            {
                "arguments": sys.argv[1:],
                "given": arguments,
                "session": os.getsid(0),
                "pid": os.getpid(),
                "parent": os.getppid(),
                "COLOUR": os.environ.get("COLOUR"),
                "SHAPE": os.environ.get("SHAPE"),
                "key": zmq.curve_keypair()[1].decode(),
                "random": [random.random(), float(np.random.random())],
                "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
                "terminates": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
                "has_numpy": "numpy" in sys.modules,
            }
        ),
        flush=True,
    )
    if arguments[0].startswith("sleeper/"):
        time.sleep(600)
    return int(arguments[0].partition("/")[2])


def main() -> None:
    """Serve one command a line: launch NAME, kill NAME, term NAME, wait NAME, bury PID, settle SHAPE."""
    directory = Path(sys.argv[1])
    nursery = start_nursery(["numpy.random", "no_such_module_at_all"], ["nursery", "x"])
    if not isinstance(nursery, Nursery):
        leave(work(nursery))
    children: dict[str, NurseryChild] = {}
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        if command == "launch":
            log = directory / f"{name.replace('/', '-')}.log"
            children[name] = nursery.launch([name, "--run-dir", str(directory)], {"COLOUR": "blue"}, log)
        elif command == "kill":
            children[name].kill()
        elif command == "term":
            children[name].send_signal(signal.SIGTERM)
        elif command == "settle":
            orders = Orders(
                ["host", "--run-dir", str(directory)], {"SHAPE": name}, directory / "nursery-0.log"
            )
            nursery.settle(orders)
        elif command == "bury":
            os.kill(int(name), signal.SIGKILL)
        code = children[name].wait(30.0) if command == "wait" else None
        alive = children[name].poll() is None if name in children else None
        print(json.dumps({"code": code, "alive": alive, "nursery": nursery.alive}), flush=True)


if __name__ == "__main__":
    main()
