"""ControllerState: what a controller that takes a run over must know, in state/controller.json."""

from __future__ import annotations

import json
import os
import socket
import time

import msgspec

from hpc_marl.base.durable_files import atomic_write
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.verdict import Verdict
from hpc_marl.errors import ConfigError


class ControllerState(msgspec.Struct, kw_only=True):
    """Facts that no worker can tell. Written by the holder of the controller's lease, whenever they change.

    Attributes:
        run_uuid: of the launch that it belongs to; that of an earlier one means nothing.
        phase: see `controller.Phase`.
        epoch: the trainers' newest right to write.
        actors: how many are wanted.
        lives: launches so far of every worker, by name.
        restarts: of these, what its own failures cost.
        given_up: workers that the run goes on without.
        elapsed_s: time under all controllers so far.
        is_paused: whether the user has paused the run.
        updated: when it was written, by the writer's clock.
        host: of the writer.
        pid: of the writer.
    """

    run_uuid: str
    phase: str = "starting"
    epoch: int = 0
    actors: int = 0
    lives: dict[str, int] = {}
    restarts: dict[str, int] = {}
    given_up: list[str] = []
    elapsed_s: float = 0.0
    is_paused: bool = False
    updated: float = 0.0
    host: str = ""
    pid: int = 0


def read_controller_state(directory: RunDirectory, run_uuid: str) -> ControllerState | None:
    """Return the state that an earlier controller of this launch left; None where there was none.

    Raises:
        ConfigError: the file is not one of ours.
    """
    try:
        state = msgspec.json.decode(directory.controller_file.read_bytes(), type=ControllerState)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{directory.controller_file} is not a controller's state: {error}") from None
    return state if state.run_uuid == run_uuid else None


def write_controller_state(directory: RunDirectory, state: ControllerState) -> None:
    """Replace the file, stamped with who writes and when."""
    stamped = msgspec.structs.replace(
        state, updated=round(time.time(), 3), host=socket.gethostname(), pid=os.getpid()
    )
    atomic_write(directory.controller_file, msgspec.json.format(msgspec.json.encode(stamped), indent=1))


def write_verdict(directory: RunDirectory, verdict: Verdict) -> None:
    """Say in state/verdict.json how the run ended: from then on nobody drives it any more."""
    content = {"status": verdict.status.value, "reason": verdict.reason, "exit_code": verdict.exit_code}
    atomic_write(directory.verdict_file, json.dumps(content, indent=1).encode())
