"""examples/add_a_worker_kind: a new kind is one file, as a thread and as a process of a run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from hpc_marl.base.launch_record import LaunchRecord, write_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import create_keyring
from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import assignment
from hpc_marl.control.worker_control import ZmqWorkerControl
from hpc_marl.control.worker_state import WorkerStatus, exit_code
from hpc_marl.launch import make_plan
from tests.unit.control.control_fakes import PATIENCE_S, eventually

EXAMPLE = Path(__file__).parents[3] / "examples" / "add_a_worker_kind"


def test_the_example_runs_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    importlib.import_module("memory_watch").main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("RUNNING: ")
    assert lines[1].startswith("forgotten: ")
    assert lines[2] == "COMPLETED"


def test_the_example_is_a_worker_of_a_run(tmp_path: Path) -> None:
    config = compose_experiment(["experiment=memory_watch"], EXAMPLE / "conf")
    assert "memory/0" in make_plan(config).worker_names
    directory = RunDirectory(tmp_path, "example", "trial")
    directory.create()
    record = LaunchRecord(
        experiment_name="example",
        trial_name="trial",
        run_uuid=uuid.uuid4().hex,
        epoch=0,
        interface=None,
        heartbeat_interval_s=0.05,
        orphan_grace_s=PATIENCE_S,
        worker_kinds={kind: group.worker_class for kind, group in config.extra_workers.items()},
    )
    create_keyring(directory.auth(record.run_uuid))
    write_launch_record(directory, record)
    process = subprocess.Popen(
        [sys.executable, "-m", "hpc_marl.workers", "memory/0", "--run-dir", str(directory.path)],
        env={**os.environ, "PYTHONPATH": str(EXAMPLE)},
    )
    try:
        with (
            RunContext.open(directory, record.run_uuid, interface=None) as context,
            ZmqWorkerControl("example", "trial", context) as panel,
        ):
            panel.connect(["memory/0"], timeout=PATIENCE_S)
            settings = assignment(config, "memory/0", epoch=0, life=0, num_actors=1)
            assert panel.request("memory/0", "configure", config=settings) == "READY"
            assert panel.request("memory/0", "start") == "RUNNING"
            beat = eventually(
                lambda: panel.heartbeats()["memory/0"], lambda beat: bool(beat.metrics.get("peak_bytes"))
            )
            assert beat.status is WorkerStatus.RUNNING
            assert panel.request("memory/0", "forget_peak") == beat.metrics["peak_bytes"]
            assert panel.request("memory/0", "exit") == "COMPLETED"
        assert process.wait(PATIENCE_S) == exit_code(WorkerStatus.COMPLETED)
    finally:
        process.kill()
        process.wait()
