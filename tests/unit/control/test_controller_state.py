"""What a controller leaves on disk for the next one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpc_marl.base.epoch_fence import read_epoch, write_epoch
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.controller_state import (
    ControllerState,
    read_controller_state,
    write_controller_state,
    write_verdict,
)
from hpc_marl.control.verdict import Verdict
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ConfigError
from hpc_marl.trials.trial_files import read_verdict

UUID = "0" * 32


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path, "exp", "trial")
    made.create()
    return made


def test_a_state_comes_back_with_its_writer(directory: RunDirectory) -> None:
    state = ControllerState(
        run_uuid=UUID, phase="training", epoch=3, actors=2, lives={"actor/0": 4}, restarts={"actor/0": 1}
    )
    assert read_controller_state(directory, UUID) is None
    write_controller_state(directory, state)
    found = read_controller_state(directory, UUID)
    assert found is not None and found.pid == os.getpid() and found.updated > 1e9 and found.host
    assert (found.phase, found.epoch, found.lives, found.restarts) == (
        "training",
        3,
        {"actor/0": 4},
        {"actor/0": 1},
    )
    written = json.loads(directory.controller_file.read_text())
    assert {"phase", "epoch", "actors", "lives", "given_up", "updated", "host", "pid"} <= written.keys()


def test_the_state_of_an_earlier_launch_means_nothing(directory: RunDirectory) -> None:
    write_controller_state(directory, ControllerState(run_uuid="1" * 32))
    assert read_controller_state(directory, UUID) is None


def test_a_damaged_state_says_which_file(directory: RunDirectory) -> None:
    directory.controller_file.write_text('{"run_uuid": 3}')
    with pytest.raises(ConfigError, match=r"controller.json is not a controller's state"):
        read_controller_state(directory, UUID)


def test_a_verdict_and_an_epoch_are_read_back(directory: RunDirectory) -> None:
    assert read_verdict(directory) is None and read_epoch(directory.epoch_file) is None
    write_verdict(directory, Verdict(WorkerStatus.INTERRUPTED, "stopped by command"))
    assert json.loads(directory.verdict_file.read_text()) == {
        "status": "INTERRUPTED",
        "reason": "stopped by command",
        "exit_code": 130,
    }
    write_epoch(directory.epoch_file, 7)
    assert read_epoch(directory.epoch_file) == 7
