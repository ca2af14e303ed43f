"""One end of an inference stream as a process of its own, to be killed: `-m ... server|client DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from hpc_marl.streams.inference import ArrayField, InferenceClient, InferenceLayout, InferenceServer
from tests.unit.streams.stream_process import open_context

ROOT = "exp/trial/inference_stream"


def layout(num_envs: int = 4) -> InferenceLayout:
    """Two agents that see three numbers."""
    field = ArrayField
    return InferenceLayout(
        [field("observation", "<f4", (num_envs, 2, 3)), field("noise", "<f4", (num_envs, 2, 1))],
        [field("action", "<f4", (num_envs, 2)), field("log_prob", "<f4", (num_envs, 2))],
    )


def arrays(value: float = 0.0, num_envs: int = 4) -> dict[str, np.ndarray]:
    return {
        "observation": np.full((num_envs, 2, 3), value, np.float32),
        "noise": np.full((num_envs, 2, 1), 0.5, np.float32),
    }


def actions(observation: np.ndarray) -> dict[str, np.ndarray]:
    action = observation.sum(axis=-1)
    return {"action": action, "log_prob": -action}


def run_server(directory: Path, index: str) -> None:
    with open_context(directory) as context:
        server = InferenceServer(context, f"{ROOT}/policy/{index}")
        while True:
            server.poll(0.05)
            for request in server.take(1000):
                server.reply([request], actions(request.arrays["observation"]), 1)


def run_client(directory: Path) -> None:
    """Ask for ever, and check every answer."""
    with open_context(directory) as context:
        client = InferenceClient(context, ROOT, 0, layout(), num_groups=2)
        value = 0
        while True:
            for group in range(2):
                client.submit(group, arrays(value + group))
            for group in range(2):
                while (reply := client.collect(group, 0.1)) is None:
                    pass
                assert (reply.arrays["action"] == 3 * (value + group)).all(), "another request's answer"
            value = (value + 1) % 1000


if __name__ == "__main__":
    role, where, *further = sys.argv[1:]
    {"server": run_server, "client": run_client}[role](Path(where), *further)
