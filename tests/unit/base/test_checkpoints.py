"""A writer may die anywhere, a disk may lie, a zombie may write: a valid checkpoint is always found."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_marl.base import checkpoint_files
from hpc_marl.base.checkpoints import latest_checkpoint, save_checkpoint
from hpc_marl.errors import CheckpointError


def tensors(value: float) -> dict[str, dict[str, Any]]:
    return {
        "model": {"weight": np.full((3, 4), value, np.float32), "scale": np.float32(value)},
        "optim": {"step": np.array([1, 2], np.int64), "mean": np.full((4, 3), value, np.float32).T},
    }


def save(directory: Path, step: int, epoch: int = 1, keep: int = 3) -> Path:
    return save_checkpoint(
        directory,
        step=step,
        epoch=epoch,
        tensors=tensors(step),
        state={"step": step, "random": 2**80},
        keep=keep,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("step-"))


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".tmp-")]


def test_what_was_saved_is_found_bit_for_bit(tmp_path: Path):
    directory = tmp_path / "run" / "checkpoints"
    assert latest_checkpoint(directory) is None
    path = save(directory, 123, epoch=7)
    assert path == directory / "step-000123.e0007"
    assert sorted(os.listdir(path)) == [
        "MANIFEST.json",
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]
    assert (directory / "latest").read_text() == "step-000123.e0007\n"
    found = latest_checkpoint(directory)
    assert found is not None
    assert (found.path, found.step, found.epoch, found.refused) == (path, 123, 7, ())
    assert found.state == {"step": 123, "random": 2**80}
    for group, arrays in tensors(123).items():
        read = found.tensors(group)
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype and read[name].shape == array.shape
            assert np.array_equal(read[name], array)
    with pytest.raises(CheckpointError, match="no tensors 'critic'; it has model, optim"):
        found.tensors("critic")
    assert path.stat().st_mode & 0o077 == 0 and (path / "state.json").stat().st_mode & 0o077 == 0


def test_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 1_000_000):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-000003.e0001", "step-1000000.e0001"]
    assert leftovers(tmp_path) == []
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1_000_000


def test_a_pair_of_epoch_and_step_is_written_once(tmp_path: Path):
    path = save(tmp_path, 5)
    before = (path / "MANIFEST.json").stat().st_ino
    assert save(tmp_path, 5) == path
    assert (path / "MANIFEST.json").stat().st_ino == before
    (path / "state.json").write_text("{}")
    assert save(tmp_path, 5) == path
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.state["step"] == 5


def test_a_zombie_of_a_lower_epoch_never_wins(tmp_path: Path):
    save(tmp_path, 10, epoch=2, keep=1)
    save(tmp_path, 900, epoch=1, keep=1)
    found = latest_checkpoint(tmp_path)
    assert found is not None and (found.epoch, found.step) == (2, 10)
    assert (tmp_path / "latest").read_text() == "step-000010.e0002\n"
    save(tmp_path, 11, epoch=2, keep=1)
    assert names(tmp_path) == ["step-000011.e0002"]


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"])
def test_every_flipped_bit_is_seen(tmp_path: Path, file: str):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = path.read_bytes()
    positions = range(0, len(content), max(1, len(content) // 60))
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        found = latest_checkpoint(tmp_path)
        assert found is not None and found.step == 1, (
            f"{file}: bit {position % 8} of byte {position} went unseen"
        )
        assert len(found.refused) == 1 and "step-000002.e0001" in found.refused[0]
    path.write_bytes(content)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 2


def test_damage_is_reported_with_its_reason(tmp_path: Path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-000005.e0001" / "MANIFEST.json").unlink()
    (tmp_path / "step-000004.e0001" / "model.safetensors").unlink()
    with (tmp_path / "step-000003.e0001" / "state.json").open("ab") as file:
        file.write(b" ")
    shutil.rmtree(tmp_path / "step-000002.e0001")
    shutil.copytree(tmp_path / "step-000001.e0001", tmp_path / "step-000002.e0001")
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    reasons = [
        "MANIFEST.json is missing",
        "model.safetensors is missing",
        "bytes instead of",
        "is of step 1, epoch 1",
    ]
    assert len(found.refused) == 4
    assert all(reason in refused for reason, refused in zip(reasons, found.refused, strict=True))
    (tmp_path / "step-000001.e0001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in .*state\.json is missing"):
        latest_checkpoint(tmp_path)


def test_damage_after_verification_is_seen_on_reading(tmp_path: Path):
    path = save(tmp_path, 1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        found.tensors("model")


def test_retention_counts_whole_checkpoints_only(tmp_path: Path):
    save(tmp_path, 1, keep=2)
    path = save(tmp_path, 2, keep=2)
    (path / "state.json").unlink()
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["step-000001.e0001", "step-000002.e0001", "step-000003.e0001"]
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["step-000003.e0001", "step-000004.e0001"]


def test_latest_is_never_trusted(tmp_path: Path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "latest").write_text("step-000001.e0001\n")
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 2


def test_state_must_be_plain(tmp_path: Path):
    with pytest.raises(CheckpointError, match="state cannot be written"):
        save_checkpoint(tmp_path, step=1, epoch=1, tensors={}, state={"rng": np.zeros(2)}, keep=1)
    with pytest.raises(CheckpointError, match="lower-case"):
        save_checkpoint(tmp_path, step=1, epoch=1, tensors={"../model": {}}, state={}, keep=1)
    assert os.listdir(tmp_path) == []


class Killed(BaseException):
    """What stands for SIGKILL: no handler of errors may catch it."""


class Disk:
    """Counts the calls that change the disk and fails the n-th; knows what a power cut would lose then."""

    CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace")

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fail_at: int, failure: Callable[[], BaseException]
    ) -> None:
        self.count = 0
        self._fail_at, self._failure = fail_at, failure
        self._unsynced: dict[int, str] = {}
        self._real = {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            monkeypatch.setattr(os, name, getattr(self, f"_{name}"))

    def lose_power(self) -> None:
        for path in self._unsynced.values():
            os.truncate(path, os.path.getsize(path) // 2)

    def _step(self) -> bool:
        self.count += 1
        return self.count == self._fail_at

    def _mkdir(self, *args: Any, **kwargs: Any) -> None:
        if self._step():
            raise self._failure()
        self._real["mkdir"](*args, **kwargs)

    def _open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and self._step():
            raise self._failure()
        descriptor: int = self._real["open"](path, flags, *args, **kwargs)
        if flags & os.O_CREAT:
            self._unsynced[descriptor] = str(path)
        return descriptor

    def _write(self, descriptor: int, content: memoryview) -> int:
        if self._step():
            self._real["write"](descriptor, content[: len(content) // 2])
            raise self._failure()
        # A write may be short.
        written: int = self._real["write"](descriptor, content[: max(1, len(content) // 2)])
        return written

    def _fsync(self, descriptor: int) -> None:
        if self._step():
            raise self._failure()
        self._unsynced.pop(descriptor, None)

    def _rename(self, source: Any, target: Any) -> None:
        if self._step():
            raise self._failure()
        assert not any(path.startswith(str(source)) for path in self._unsynced.values()), (
            "renamed before it was synced"
        )
        self._real["rename"](source, target)

    def _replace(self, source: Any, target: Any) -> None:
        if self._step():
            raise self._failure()
        assert str(source) not in self._unsynced.values(), "replaced before it was synced"
        self._real["replace"](source, target)


@pytest.mark.parametrize("power", ["stays", "fails"])
def test_a_writer_may_die_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: str):
    outcomes = set()
    fail_at, finished = 0, False
    while not finished:
        fail_at += 1
        directory = tmp_path / str(fail_at)
        save(directory, 1, keep=1)
        with monkeypatch.context() as patch:
            disk = Disk(patch, fail_at, Killed)
            try:
                save(directory, 2, keep=1)
                finished = True
            except Killed:
                if power == "fails":
                    disk.lose_power()
        found = latest_checkpoint(directory)
        assert found is not None and found.step in (1, 2) and found.refused == ()
        assert found.tensors("model")["weight"][0, 0] == found.step
        outcomes.add(found.step)
        # The next life of the writer cleans up and goes on.
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_files, "process_start_ticks", lambda pid: None)
            checkpoint_files.sweep_orphans(directory)
        assert leftovers(directory) == []
        save(directory, 3, epoch=2, keep=1)
        assert names(directory) == ["step-000003.e0002"]
    assert outcomes == {1, 2} and fail_at > 20


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    fail_at, failures = 0, 0
    while True:
        fail_at += 1
        directory = tmp_path / str(fail_at)
        save(directory, 1)
        with monkeypatch.context() as patch:
            disk = Disk(patch, fail_at, lambda: OSError(code, os.strerror(code)))
            try:
                save(directory, 2)
            except CheckpointError as error:
                failures += 1
                assert os.strerror(code) in str(error) and "untouched" in str(error)
        found = latest_checkpoint(directory)
        assert found is not None and found.refused == ()
        # Room was given back, but for the file `latest`, whose failure is no failure of the checkpoint.
        assert [name for name in leftovers(directory) if "step-" in name] == []
        if disk.count < fail_at:
            break
    assert failures > 15


def test_only_the_dead_and_the_old_are_swept(tmp_path: Path):
    mine = checkpoint_files.temporary_path(tmp_path / "step-000009.e0001")
    dead = tmp_path / mine.name.replace(f".{os.getpid()}.", ".999999999.")
    foreign = tmp_path / ".tmp-step-000009.e0001-0123456789ab.1.1-01234567"
    old = tmp_path / ".tmp-step-000008.e0001-0123456789ab.1.1-01234567"
    for path in (mine, dead, foreign, old):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    os.utime(old, (1, 1))
    save(tmp_path, 1)
    assert sorted(leftovers(tmp_path)) == sorted([mine.name, foreign.name])


def test_the_manifest_can_be_checked_by_hand(tmp_path: Path):
    manifest = json.loads((save(tmp_path, 3, epoch=4) / "MANIFEST.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["epoch"]) == (1, 3, 4)
    assert (
        manifest["files"]["state.json"]["bytes"] == (tmp_path / "step-000003.e0004/state.json").stat().st_size
    )
