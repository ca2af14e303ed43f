"""What is started before the command line is understood: only where it will be needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpc_marl.composing import early_start
from hpc_marl.composing.early_start import seems_to_train_here
from tests.architecture.source_tree import ROOT


@pytest.fixture(params=[False, True], ids=["no sbatch", "sbatch"])
def has_sbatch(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    (tmp_path / "sbatch").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if request.param else "/nowhere")
    return bool(request.param)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["experiment=cartpole_ppo", "seed=3", "+x=1"],
        ["cluster=local", "--config-dir", "x"],
        ["cluster.nodes=2"],
    ],
    ids=str,
)
@pytest.mark.usefixtures("has_sbatch")
def test_a_run_on_this_machine_begins_early(arguments: list[str]) -> None:
    assert seems_to_train_here(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--cfg", "job"], ["--dry-run"], ["--prepare"], ["-m", "seed=1,2"], ["--info"]),
        *(["cluster=site"], ["cluster.kind=slurm"], ["controller=job"], ["--config-name=x"], ["experiment"]),
        *(["hydra.mode=MULTIRUN"], ["hydra/launcher=joblib"], ["+hydra.x=1"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("has_sbatch")
def test_all_else_does_not(arguments: list[str]) -> None:
    assert not seems_to_train_here(arguments)


@pytest.mark.parametrize(
    "arguments", [["--config-dir", "here"], ["--config-dir=here"], ["-cd", "here"]], ids=str
)
def test_files_of_ones_own_may_name_a_cluster(has_sbatch: bool, arguments: list[str]) -> None:
    assert seems_to_train_here(arguments) is not has_sbatch


@pytest.mark.parametrize(
    "text",
    ["defaults:\n  - override /cluster: site\n", "cluster:\n  kind: slurm\n", "defaults: [cluster: site]\n"],
    ids=str,
)
def test_so_may_our_files_once_somebody_has_edited_them(
    has_sbatch: bool, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "config.yaml").write_text("defaults:\n  - cluster: local\n")
    monkeypatch.setattr(early_start, "conf_directory", lambda: tmp_path)
    assert seems_to_train_here([])
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert seems_to_train_here([]) is not has_sbatch


def test_a_wrong_command_line_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hpc_marl.train", "algoritm=mappo", f"root={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "algorithm" in done.stderr
    assert list(tmp_path.iterdir()) == []
