"""`hpc-marl cluster init` in the lab: what it writes is right without edits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.slurm.running_lab import RunningLab, running_lab

__all__ = ["running_lab"]

pytestmark = pytest.mark.slurm

SHIPPED = Path(__file__).parents[2] / "conf" / "cluster" / "lab.yaml"


def test_the_profile_of_the_lab_needs_no_edits(running_lab: RunningLab) -> None:
    conf, root = running_lab.directory / "conf", running_lab.directory / "runs"
    root.mkdir(mode=0o700)
    written = running_lab.hpc_marl(
        "cluster", "init", "here", "--output", str(conf), "--shared-root", str(root)
    )
    assert written.returncode == 0, written.stderr
    profile = yaml.safe_load((conf / "cluster" / "here.yaml").read_text())
    shipped = yaml.safe_load(SHIPPED.read_text())
    assert profile == {**shipped, "shared_root": str(root)}
    found = running_lab.hpc_marl("doctor", "cluster=here", "--config-dir", str(conf))
    assert found.returncode == 0, found.stdout + found.stderr
    assert list(root.iterdir()) == []


def test_a_directory_that_nodes_do_not_share_is_refused(running_lab: RunningLab) -> None:
    refused = running_lab.hpc_marl(
        "cluster", "init", "here", "--output", str(running_lab.directory), "--shared-root", "/tmp"
    )
    assert refused.returncode == 2
    assert "sees none of /tmp" in refused.stderr
    assert list(running_lab.directory.iterdir()) == []
