"""The peer of remote inference: one pickled dict of arrays per request over zmq REQ/REP, as frameworks often do it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import zmq

from hpc_marl.base.run_context import RunContext
from hpc_marl.config import ActorAssignment
from hpc_marl.policies.spec import ActResult, PolicySpec
from hpc_marl.streams.parameters import ParameterSet
from hpc_marl.workers.acting import Acting
from hpc_marl.workers.batch_views import ActInputs


def serve_pickle(pipe: Any, secret_key: bytes | None) -> None:
    """Answer requests with action 0, one by one, until killed; the port goes through `pipe`.

    Args:
        pipe: of the caller.
        secret_key: for CURVE; None goes without.
    """
    socket = zmq.Context().socket(zmq.REP)
    if secret_key is not None:
        socket.curve_secretkey, socket.curve_server = secret_key, True
    pipe.send(socket.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        request = pickle.loads(socket.recv())  # noqa: S301 - from this machine
        shape = request["observation"].shape[:2]
        reply = {"action": np.zeros(shape, np.int32), "log_prob": np.zeros(shape, np.float32), "version": 1}
        socket.send(pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL))


class PickleActing(Acting):
    """One REQ socket per group: a REQ has one request under way at most."""

    def __init__(
        self, context: RunContext, config: ActorAssignment, port: int, server_key: bytes | None
    ) -> None:
        super().__init__(context, config)
        self._zmq = zmq.Context()
        self._sockets = [self._zmq.socket(zmq.REQ) for _ in range(config.actors.num_groups)]
        self._poller = zmq.Poller()
        for socket in self._sockets:
            if server_key is not None:
                socket.curve_serverkey = server_key
                socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            socket.connect(f"tcp://127.0.0.1:{port}")
            self._poller.register(socket, zmq.POLLIN)

    def _load(self, spec: PolicySpec, newer: ParameterSet) -> None:
        """Nothing to load."""

    def submit(self, group: int, inputs: ActInputs) -> None:
        """Send the request."""
        request = {"observation": inputs.observation, "noise": inputs.noise}
        self._sockets[group].send(pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL))

    def wait(self, timeout_s: float) -> None:
        """Return once any group has its answer."""
        self._poller.poll(max(1000 * timeout_s, 0))

    def collect(self, group: int) -> ActResult | None:
        """Return the answer once it is there."""
        try:
            reply = pickle.loads(self._sockets[group].recv(zmq.NOBLOCK))  # noqa: S301 - from this machine
        except zmq.Again:
            return None
        return ActResult(reply["action"], reply["log_prob"], None, reply["version"])

    def close(self) -> None:
        """Disconnect."""
        self._zmq.destroy(linger=0)
        super().close()
