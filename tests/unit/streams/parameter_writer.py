"""Publishes as fast as it can into shared memory, for a reader of another process to find torn versions."""

from __future__ import annotations

import os
import sys

import msgspec
import numpy as np

from hpc_marl.streams.parameter_memory import ParameterLayout, ParameterMemory

SHAPES = {"w": (64, 512), "b": (7,)}

if __name__ == "__main__":
    memory = ParameterMemory.create(ParameterLayout(SHAPES), "test")
    sys.stdout.write(msgspec.json.encode(memory.handle).decode() + "\n")
    sys.stdout.flush()
    weights = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    version = 0
    parent = os.getppid()
    while os.getppid() == parent:  # whatever becomes of the test, nothing of it stays behind
        version += 1
        for array in weights.values():
            array[...] = version % 1_000_000
        memory.write(version, weights)
