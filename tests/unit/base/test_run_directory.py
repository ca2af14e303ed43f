from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hpc_marl.base.durable_files import write_exclusively
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.base.security import create_keyring
from hpc_marl.errors import ConfigError, SecurityError


def test_directories_are_made_private(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs", "exp", "lr=0.1,seed=2")
    directory.create()
    directory.create()
    directory.check()
    for made in (directory.path, directory.state, directory.checkpoints, directory.metrics, directory.logs):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert directory.path == tmp_path / "runs" / "exp" / "lr=0.1,seed=2"
    assert directory.config_file.parent == directory.launch_file.parent == directory.path


def test_a_directory_is_found_again_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    monkeypatch.chdir(tmp_path)
    again = RunDirectory.at("exp/trial")
    assert (again.path, again.experiment_name, again.trial_name) == (directory.path, "exp", "trial")


def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    directory.path.chmod(0o755)
    with pytest.raises(SecurityError, match="chmod 700"):
        directory.check()
    with pytest.raises(SecurityError, match="chmod 700"):
        directory.create()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".hidden", "a b", "a\n", "ü", "a" * 201])
def test_names_that_are_no_directory_are_refused(tmp_path: Path, name: str) -> None:
    for experiment, trial in ((name, "trial"), ("exp", name)):
        with pytest.raises(ConfigError, match="cannot name a directory"):
            RunDirectory(tmp_path, experiment, trial)
    with pytest.raises(ConfigError, match="cannot name a directory"):
        RunDirectory(tmp_path, "exp", "trial").auth(name)


def test_a_forgotten_run_leaves_no_keys(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    create_keyring(directory.auth("abc"))
    atomic_write(directory.config_file, b"kept")
    directory.forget_run("abc")
    directory.forget_run("abc")
    assert not directory.run("abc").exists()
    assert directory.config_file.read_bytes() == b"kept"


def test_a_write_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic_write(target, b"old")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            atomic_write(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"


def test_an_exclusive_write_happens_once(tmp_path: Path) -> None:
    assert write_exclusively(tmp_path / "file", b"first")
    assert not write_exclusively(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lost_reply_to_link_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_link = os.link

    def link_and_lose_the_reply(source: Path, target: Path) -> None:
        real_link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_reply)
    assert write_exclusively(tmp_path / "file", b"ours")
