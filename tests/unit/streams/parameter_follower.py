"""Follows a parameter stream by ZMQ as a process of its own and prints each version that it gets, to be stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpc_marl.streams.parameters import ParameterReader
from tests.unit.streams.stream_process import open_context

KEY = "exp/trial/parameter_stream/trainer/0"

if __name__ == "__main__":
    with open_context(Path(sys.argv[1])) as context:
        reader = ParameterReader(context, KEY, transport="zmq")
        version = -1
        parent = os.getppid()
        while os.getppid() == parent:  # whatever becomes of the test, nothing of it stays behind
            found = reader.wait(version + 1, 1.0)
            if found is not None:
                version = found.policy_version
                assert (found.weights["w"] == version).all(), "a torn version"
                sys.stdout.write(f"{version}\n")
                sys.stdout.flush()
        reader.close()
