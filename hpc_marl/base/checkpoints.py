"""Checkpoints that are whole or absent: written beside, renamed into place, read back, only then relied upon.

    save:  mkdir .tmp-...  ->  write + fsync each file, MANIFEST.json last  ->  fsync the directory
           ->  rename to step-000123.e0007  ->  fsync the parent  ->  read back  ->  `latest`  ->  retention
    load:  the highest (epoch, step) whose every byte agrees with its manifest

A directory `step-000123.e0007` holds one .safetensors file for each group of tensors, state.json, and
MANIFEST.json with the size and SHA-256 of each. The epoch is the writer's right to write: a writer that was
replaced has a lower one, so that nothing it still writes wins over its successor's. The file `latest` is for
people; the loader never reads it. Whatever moment a writer dies at, the checkpoint before stays valid.

>>> import tempfile
>>> weights = {"model": {"bias": np.zeros(3, np.float32)}}
>>> with tempfile.TemporaryDirectory() as directory:
...     path = save_checkpoint(directory, step=123, epoch=7, tensors=weights, state={"env_steps": 9}, keep=3)
...     found = latest_checkpoint(directory)
...     path.name, found.step, found.state["env_steps"], found.tensors("model")["bias"].shape
('step-000123.e0007', 123, 9, (3,))
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from hpc_marl.base.checkpoint_files import (
    MANIFEST,
    DamagedError,
    read_manifest,
    read_verified,
    remove_tree,
    sealed_manifest,
    sweep_orphans,
    temporary_path,
    write_file,
)
from hpc_marl.base.durable_files import sync_directory
from hpc_marl.errors import CheckpointError, FencedError

_log = logging.getLogger(__name__)

_STATE = "state.json"
_LATEST = "latest"
_SUFFIX = ".safetensors"
_NAME = re.compile(r"step-(\d{6,})\.e(\d{4,})")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint.

    Attributes:
        path: its directory.
        step: the policy version saved.
        epoch: the writer's epoch.
        state: what was given as `state`, as JSON gives it back (tuples are lists).
        refused: newer ones that are damaged, each with the reason.
    """

    path: Path
    step: int
    epoch: int
    state: Mapping[str, Any]
    refused: tuple[str, ...] = ()

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Read one group of tensors, such as `model`.

        Raises:
            CheckpointError: there is no such group, or it has changed since the checkpoint was verified.
        """
        try:
            files = read_manifest(self.path, self.step, self.epoch)
            file = name + _SUFFIX
            if file not in files:
                groups = ", ".join(sorted(known.removesuffix(_SUFFIX) for known in files if known != _STATE))
                raise CheckpointError(f"{self.path.name} has no tensors {name!r}; it has {groups}")
            return safetensors_numpy.load(read_verified(self.path / file, files[file]))
        except (DamagedError, OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {name} of {self.path}: {error}") from error


def save_checkpoint(
    directory: str | Path,
    *,
    step: int,
    epoch: int,
    tensors: Mapping[str, Mapping[str, NDArray[Any]]],
    state: Mapping[str, Any],
    keep: int,
    require_right: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint and return its directory.

    A pair (epoch, step) is written once: where it is there and valid already, nothing is written.

    Args:
        directory: where the checkpoints of the run are; made where missing.
        step: the policy version.
        epoch: the writer's right to write.
        tensors: groups of named arrays, as {"model": {...}, "optim": {...}}; each group is one file.
        state: numbers, texts, and lists and mappings of them; random states go as ints or hex text.
        keep: how many of the newest to keep; older ones go only after this one was read back and verified.
        require_right: raises FencedError where the writer was replaced; asked right before anything becomes visible
            or is deleted.

    Raises:
        CheckpointError: the disk is full, broken or forbidden, or `state` is not plain; earlier ones stay.
        FencedError: the writer was replaced; nothing of it is to be seen, or all of it is and nothing was deleted.
    """
    parent, entry = Path(directory), _Entry(epoch, step)
    path = parent / entry.name
    contents = _contents(tensors, state)
    contents[MANIFEST] = sealed_manifest(step, epoch, contents)
    temporary = temporary_path(path)
    try:
        require_right()
        _make_directory(parent)
        sweep_orphans(parent)
        if path.exists():
            if _damage(parent, entry) is None:
                return path
            _discard(path, require_right)
        os.mkdir(temporary, 0o700)
        for name, content in contents.items():
            write_file(temporary / name, content)
        sync_directory(temporary)
        require_right()
        os.rename(temporary, path)
        sync_directory(parent)
    except FencedError:
        remove_tree(temporary)
        raise
    except OSError as error:
        remove_tree(temporary)
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error}; earlier ones are untouched"
        ) from error
    if (damage := _damage(parent, entry)) is not None:
        raise CheckpointError(
            f"checkpoint {path} does not read back as written: {damage}; earlier ones are untouched"
        )
    try:
        _tidy(parent, entry, keep, require_right)
    except OSError as error:
        _log.warning("checkpoint %s is safe, but older ones could not be tidied up: %s", path, error)
    return path


def latest_checkpoint(directory: str | Path) -> Checkpoint | None:
    """Return the valid checkpoint of the highest (epoch, step); None where there are none at all.

    Damaged ones are passed over, logged, and listed in the result's `refused`.

    Raises:
        CheckpointError: there are checkpoints, all damaged: beginning anew would silently lose the run.
    """
    parent = Path(directory)
    refused: list[str] = []
    for entry in _entries(parent):
        path = parent / entry.name
        try:
            state = json.loads(_read_whole(parent, entry)[_STATE])
            return Checkpoint(path, entry.step, entry.epoch, state, tuple(refused))
        except (DamagedError, OSError) as error:
            if not path.exists():  # the writer's retention took it meanwhile, so there are newer ones
                return latest_checkpoint(parent)
            _log.warning("refused checkpoint %s: %s", path, error)
            refused.append(f"{entry.name}: {error}")
    if refused:
        raise CheckpointError(f"no valid checkpoint in {parent}: {'; '.join(refused)}")
    return None


@dataclass(frozen=True, order=True)
class _Entry:
    """What a directory's name says; the order is (epoch, step)."""

    epoch: int
    step: int

    @property
    def name(self) -> str:
        return f"step-{self.step:06d}.e{self.epoch:04d}"


def _contents(
    tensors: Mapping[str, Mapping[str, NDArray[Any]]], state: Mapping[str, Any]
) -> dict[str, bytes]:
    contents = {}
    for group, arrays in tensors.items():
        if not _GROUP.fullmatch(group):
            raise CheckpointError(f"tensors {group!r}: use lower-case letters, digits and _, as in 'model'")
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        contents[group + _SUFFIX] = safetensors_numpy.save(contiguous)
    try:
        contents[_STATE] = json.dumps(dict(state), indent=1).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state cannot be written as JSON: {error}") from error
    return contents


def _entries(parent: Path) -> list[_Entry]:
    """Return all checkpoint directories, the highest (epoch, step) first."""
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    matches = (_NAME.fullmatch(name) for name in names)
    found = [_Entry(epoch=int(match[2]), step=int(match[1])) for match in matches if match]
    return sorted((entry for entry in found if entry.name in names), reverse=True)


def _read_whole(parent: Path, entry: _Entry) -> dict[str, bytes]:
    path = parent / entry.name
    files = read_manifest(path, entry.step, entry.epoch)
    return {file: read_verified(path / file, expected) for file, expected in files.items()}


def _damage(parent: Path, entry: _Entry) -> str | None:
    """Read a whole checkpoint; return what is wrong with it, or None."""
    try:
        _read_whole(parent, entry)
    except (DamagedError, OSError) as error:
        return str(error)
    return None


def _looks_whole(parent: Path, entry: _Entry) -> bool:
    """Check the manifest and the sizes only: retention must not read every old checkpoint at every save."""
    path = parent / entry.name
    try:
        files = read_manifest(path, entry.step, entry.epoch)
        return all((path / file).stat().st_size == expected["bytes"] for file, expected in files.items())
    except (DamagedError, OSError):
        return False


def _tidy(parent: Path, written: _Entry, keep: int, require_right: Callable[[], None]) -> None:
    """Move `latest` forward and delete what is older than the `keep` newest whole checkpoints."""
    entries = _entries(parent)
    if entries[0] > written:
        return  # a successor has written; what is here is no longer this writer's to tidy
    temporary = temporary_path(parent / _LATEST)
    require_right()
    write_file(temporary, f"{written.name}\n".encode())
    os.replace(temporary, parent / _LATEST)
    sync_directory(parent)
    num_kept = 0
    for entry in entries:
        if num_kept >= keep:
            _discard(parent / entry.name, require_right)
        elif _looks_whole(parent, entry):
            num_kept += 1


def _discard(path: Path, require_right: Callable[[], None]) -> None:
    """Delete a checkpoint; renamed first, so that a reader never meets half of one."""
    require_right()
    doomed = temporary_path(path)
    os.rename(path, doomed)
    remove_tree(doomed)


def _make_directory(path: Path) -> None:
    """Make the directory, and bring its own entry to disk before anything is written into it."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(path.parent)
