"""Which trial a command means."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc_marl.base.epoch_fence import write_epoch
from hpc_marl.base.launch_record import JobRecord, LaunchRecord, write_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import ConfigError
from hpc_marl.trials.naming import choose_trial_name, next_epoch, require_not_running


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(root=str(tmp_path), experiment_name="exp", seed=4)


def make_trials(config: ExperimentConfig, *names: str) -> None:
    for name in names:
        (Path(config.root) / config.experiment_name / name).mkdir(parents=True)


def make_record(**fields: Any) -> LaunchRecord:
    return LaunchRecord(
        experiment_name="exp",
        trial_name="trial",
        run_uuid="0" * 32,
        epoch=1,
        interface=None,
        heartbeat_interval_s=1.0,
        orphan_grace_s=1.0,
        **fields,
    )


def test_fresh_runs_of_a_seed_are_numbered(config: ExperimentConfig) -> None:
    assert choose_trial_name(config) == "seed4"
    make_trials(config, "seed4", "seed5", "seed4-other")
    assert choose_trial_name(config) == "seed4-2"
    make_trials(config, "seed4-2", "seed4-10")
    assert choose_trial_name(config) == "seed4-11"


def test_resume_means_the_last_one_of_the_seed(config: ExperimentConfig) -> None:
    resume = dataclasses.replace(config, resume=True)
    with pytest.raises(ConfigError, match="nothing to resume"):
        choose_trial_name(resume)
    make_trials(config, "seed4", "seed4-2")
    assert choose_trial_name(resume) == "seed4-2"


def test_a_named_trial_is_never_overwritten(config: ExperimentConfig) -> None:
    named = dataclasses.replace(config, trial_name="mine")
    assert choose_trial_name(named) == "mine"
    with pytest.raises(ConfigError, match="there are: none"):
        choose_trial_name(dataclasses.replace(named, resume=True))
    make_trials(config, "mine")
    with pytest.raises(ConfigError, match="resume=true"):
        choose_trial_name(named)
    assert choose_trial_name(dataclasses.replace(named, resume=True)) == "mine"


def test_a_trial_whose_controller_lives_is_left_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    require_not_running(directory)
    directory.create()
    record = make_record(
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_create_time=psutil.Process().create_time(),
    )
    write_launch_record(directory, record)
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        require_not_running(directory)
    # The same process id in another life of the machine is not the controller.
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    write_launch_record(directory, LaunchRecord(**{**values, "pid_create_time": 1.0}))
    require_not_running(directory)


def test_there_is_nothing_to_resume_without_a_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    assert next_epoch(directory, resume=False) == 1
    with pytest.raises(ConfigError, match="no valid checkpoint"):
        next_epoch(directory, resume=True)


def test_a_launch_is_above_the_epochs_of_lives_that_left_no_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    write_epoch(directory.epoch_file, 7)
    assert next_epoch(directory, resume=False) == 8


def test_a_run_that_may_go_on_in_its_jobs_is_left_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    record = make_record(
        has_deputy=True,
        jobs=[JobRecord(job_id="12", role="core", slots=[0])],
    )
    write_launch_record(directory, record)
    require_not_running(directory)  # its keys are gone: it has ended
    directory.auth(record.run_uuid).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"may still run, in jobs 12: .*hpc-marl attach exp/trial"):
        require_not_running(directory)
    directory.verdict_file.write_text("{}")
    require_not_running(directory)
