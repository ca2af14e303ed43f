"""A replaced trainer writes nothing more, also while its successor writes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from hpc_marl.base import checkpoints
from hpc_marl.base.checkpoint_writer import CheckpointWriter
from hpc_marl.base.checkpoints import latest_checkpoint, save_checkpoint
from hpc_marl.base.epoch_fence import EpochFence, read_epoch, write_epoch
from hpc_marl.errors import CheckpointError, FencedError

TENSORS = {"model": {"weight": np.zeros(4, np.float32)}}


def save(directory: Path, step: int, epoch: int, fence: EpochFence | None = None, keep: int = 3) -> Path:
    right = fence.require if fence is not None else lambda: None
    return save_checkpoint(
        directory, step=step, epoch=epoch, tensors=TENSORS, state={}, keep=keep, require_right=right
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("step-"))


def test_nobody_is_fenced_before_there_is_a_newer_epoch(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    fence = EpochFence(path, 3)
    assert read_epoch(path) is None and fence.holds()
    for epoch in (1, 3):
        write_epoch(path, epoch)
        assert read_epoch(path) == epoch and fence.holds()
        fence.require()


def test_fenced_once_is_fenced_for_good(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    fence = EpochFence(path, 3)
    write_epoch(path, 4)
    assert not fence.holds()
    write_epoch(path, 3)
    assert not fence.holds()
    path.unlink()
    assert not fence.holds()
    with pytest.raises(FencedError, match="a newer epoch than 3"):
        fence.require()


def test_a_recent_look_is_enough_where_little_is_at_stake(tmp_path: Path) -> None:
    path, now = tmp_path / "epoch", [100.0]
    fence = EpochFence(path, 3, clock=lambda: now[0])
    assert fence.holds(max_age_s=0.5)
    write_epoch(path, 4)
    now[0] += 0.4
    assert fence.holds(max_age_s=0.5)
    now[0] += 0.2
    assert not fence.holds(max_age_s=0.5)
    second = EpochFence(path, 4, clock=lambda: now[0])
    assert second.holds(max_age_s=0.5)
    write_epoch(path, 5)
    assert not second.holds()


def test_an_epoch_that_is_no_number_and_a_disk_that_does_not_answer_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "epoch"
    path.write_text("four")
    with pytest.raises(FencedError, match="four"):
        EpochFence(path, 3).holds()

    def stale(self: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(OSError, match="Stale"):
        read_epoch(path)
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "checkpoints", 1, 3, EpochFence(path, 3))


def test_an_epoch_replaced_while_it_is_opened_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "epoch"
    write_epoch(path, 7)
    real, calls = Path.read_bytes, []

    def stale_at_first(self: Path) -> bytes:
        calls.append(self)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", stale_at_first)
    assert read_epoch(path) == 7


def test_a_checkpoint_does_not_become_visible_after_the_epoch_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor begins while the zombie writes: the last look, right before the rename, finds it out."""
    directory, path = tmp_path / "checkpoints", tmp_path / "epoch"
    fence = EpochFence(path, 1)
    save(directory, 1, 1, fence)
    real = checkpoints.write_file

    def succeeded_meanwhile(file: Path, content: bytes) -> None:
        real(file, content)
        write_epoch(path, 2)

    monkeypatch.setattr(checkpoints, "write_file", succeeded_meanwhile)
    with pytest.raises(FencedError):
        save(directory, 2, 1, fence)
    assert names(directory) == ["step-000001.e0001"]
    assert not [name for name in os.listdir(directory) if name.startswith(".tmp-")]


def test_a_fenced_writer_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, path = tmp_path / "checkpoints", tmp_path / "epoch"
    fence = EpochFence(path, 1)
    for step in (1, 2):
        save(directory, step, 1, fence, keep=2)
    real = os.rename

    def then_replaced(source: Path, target: Path) -> None:
        real(source, target)
        write_epoch(path, 2)

    monkeypatch.setattr(os, "rename", then_replaced)
    with pytest.raises(FencedError):
        save(directory, 3, 1, fence, keep=2)
    assert names(directory) == ["step-000001.e0001", "step-000002.e0001", "step-000003.e0001"]
    assert (directory / "latest").read_text() == "step-000002.e0001\n"


def test_a_lower_epoch_never_tidies_up_a_higher_one_and_loses_to_it(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, 2)
    save(tmp_path, 50, 1, keep=1)
    assert names(tmp_path) == ["step-000001.e0002", "step-000002.e0002", "step-000050.e0001"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and (found.epoch, found.step) == (2, 2)
    assert (tmp_path / "latest").read_text() == "step-000002.e0002\n"


def test_a_zombie_that_writes_at_the_same_time_as_its_successor_changes_nothing(tmp_path: Path) -> None:
    directory, path = tmp_path / "checkpoints", tmp_path / "epoch"
    write_epoch(path, 1)
    zombie = CheckpointWriter(directory, epoch=1, keep=2, fence=EpochFence(path, 1))
    successor = CheckpointWriter(directory, epoch=2, keep=2, fence=EpochFence(path, 2))
    begun, over = threading.Event(), threading.Event()

    def haunt() -> None:
        step = 0
        while not over.is_set():
            step += 1
            zombie.submit(step, TENSORS, {})
            zombie.wait()
            begun.set()

    thread = threading.Thread(target=haunt)
    thread.start()
    assert begun.wait(20.0)
    write_epoch(path, 2)
    for step in range(1, 9):
        successor.submit(step, TENSORS, {"by": "successor"})
        successor.wait()
    over.set()
    thread.join()
    left = names(directory)
    zombie.submit(1000, TENSORS, {})
    for writer in (zombie, successor):
        writer.close()
    assert names(directory) == left
    assert [name for name in left if name.endswith("e0002")] == ["step-000007.e0002", "step-000008.e0002"]
    found = latest_checkpoint(directory)
    assert found is not None and (found.epoch, found.step, found.state["by"]) == (2, 8, "successor")
    assert (directory / "latest").read_text() == "step-000008.e0002\n"
    assert successor.failures == zombie.failures == 0
