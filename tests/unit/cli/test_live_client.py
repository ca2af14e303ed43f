"""The connection of a login shell to a run's controller, and what is said where there is none."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.worker_control import ZmqServer
from hpc_marl.errors import ConfigError, NoControllerError, RpcError
from hpc_marl.runs.live_client import live_controller
from tests.unit.cli.planted_runs import RUN_UUID, FakeController, job, plant


def refusal(directory: RunDirectory) -> str:
    with pytest.raises(NoControllerError) as caught, live_controller(directory, timeout_s=0.0):
        pass
    return str(caught.value)


def test_why_nobody_drives_is_said(tmp_path: Path):
    assert "it was started on elsewhere; take over by `hpc-marl attach a/started`" in refusal(
        plant(tmp_path, "a/started")
    )
    assert "its jobs 101 may still run; take over by" in refusal(plant(tmp_path, "a/jobs", jobs=[job()]))
    assert "it has ended ERROR: as planted" in refusal(
        plant(tmp_path, "a/failed", verdict="ERROR", is_open=False)
    )
    assert "its keys are gone, so it has ended" in refusal(plant(tmp_path, "a/gone", is_open=False))
    with (
        pytest.raises(ConfigError, match="holds no run"),
        live_controller(RunDirectory(tmp_path, "a", "none")),
    ):
        pass


def test_a_silent_controller_is_named_with_its_addresses(tmp_path: Path):
    directory = plant(tmp_path)
    with (
        RunContext.open(directory, RUN_UUID, interface=None) as context,
        ZmqServer("foraging", "seed0", "controller", context=context) as server,
        live_controller(directory) as controller,
    ):
        with pytest.raises(NoControllerError) as caught:
            controller.request("status", timeout=0.1)
        assert f"process {os.getpid()} at 127.0.0.1 port {server.port}) does not answer" in str(caught.value)
        assert "`hpc-marl attach foraging/seed0`" in str(caught.value)


def test_the_client_goes_on_with_the_next_controller(tmp_path: Path):
    directory = plant(tmp_path)
    with (
        FakeController(directory, status=lambda: {"n": 1}) as first,
        live_controller(directory) as controller,
    ):
        assert controller.status() == {"n": 1}
        with FakeController(directory, status=lambda: {"n": 2}):
            first.__exit__()
            assert controller.request("status", timeout=1.0) == {"n": 2}


def test_a_run_may_end_while_it_is_asked(tmp_path: Path):
    directory = plant(tmp_path)
    with ExitStack() as stack:
        controller = stack.enter_context(FakeController(directory, status=dict))
        client = stack.enter_context(live_controller(directory))
        assert client.status() == {}
        controller.__exit__()
        directory.forget_run(RUN_UUID)
        with pytest.raises(NoControllerError, match="its keys are gone, so it has ended"):
            client.request("status", timeout=0.1)


def test_an_unknown_command_lists_those_there_are(tmp_path: Path):
    directory = plant(tmp_path)
    with (
        FakeController(directory, status=dict),
        live_controller(directory) as controller,
        pytest.raises(RpcError, match="status"),
    ):
        controller.request("dance")
