"""An installed wheel has its own conf/ and needs no clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from hpc_marl.composing.compose import conf_directory

ROOT = Path(__file__).resolve().parents[3]


def test_a_built_wheel_composes_the_main_job(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed" / "hpc_marl"
    expected = {path.relative_to(conf_directory()) for path in conf_directory().rglob("*.yaml")}
    assert {path.relative_to(installed / "conf") for path in (installed / "conf").rglob("*.yaml")} == expected
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import hpc_marl.composing.compose as c; print(c.conf_directory(), c.compose_experiment().seed)",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.split() == [str(installed / "conf"), "1"]
