"""The files of one checkpoint: sealed manifest, verified reading, durable writing, leftovers of dead writers.

Every name under construction begins with `.tmp-` and ends with the writer's process, so that another process
can tell whether anyone is still at it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_marl.base.network import host_identity, process_start_ticks

MANIFEST = "MANIFEST.json"

_FORMAT = 1
_TEMPORARY = ".tmp-"
_ORPHAN_AGE_S = 3600.0  # what a process of another machine has under construction is left alone for this long


class DamagedError(Exception):
    """A checkpoint does not agree with its manifest; the message says where."""


def sealed_manifest(step: int, epoch: int, contents: Mapping[str, bytes]) -> bytes:
    """Return the manifest of files with these contents."""
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    return _sealed({"format": _FORMAT, "step": step, "epoch": epoch, "files": files})


def read_manifest(path: Path, step: int, epoch: int) -> dict[str, dict[str, Any]]:
    """Return the files that the manifest of the checkpoint `path` lists, each with its `bytes` and `sha256`.

    Raises:
        DamagedError: there is no manifest, it was changed, or it is of another step or epoch.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        is_sealed = _sealed(manifest) == content
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{MANIFEST} is not readable") from None
    if not is_sealed:
        raise DamagedError(f"{MANIFEST} was changed after it was written")
    if manifest["format"] != _FORMAT:
        raise DamagedError(f"format {manifest['format']} is not {_FORMAT}, the one this version reads")
    if (manifest["step"], manifest["epoch"]) != (step, epoch):
        raise DamagedError(f"{MANIFEST} is of step {manifest['step']}, epoch {manifest['epoch']}")
    files: dict[str, dict[str, Any]] = manifest["files"]
    return files


def read_verified(path: Path, expected: Mapping[str, Any]) -> bytes:
    """Return a file's content.

    Raises:
        DamagedError: it does not have the size and digest that its manifest gives.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path.name} is missing") from None
    if len(content) != expected["bytes"]:
        raise DamagedError(f"{path.name} has {len(content)} bytes instead of {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise DamagedError(f"{path.name} does not agree with its SHA-256")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Create a file; when this returns, its content is on disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Return a name beside `path`, unique to this process and call."""
    return (
        path.parent / f"{_TEMPORARY}{path.name}-{_machine_label()}.{_process_label()}-{uuid.uuid4().hex[:8]}"
    )


def sweep_orphans(parent: Path) -> None:
    """Delete what dead processes left under construction, and what is too old to be still in the making."""
    for name in os.listdir(parent):
        if name.startswith(_TEMPORARY) and _is_orphan(parent / name):
            remove_tree(parent / name)


def remove_tree(path: Path) -> None:
    """Delete a file or a directory as far as possible; the next sweep takes what is left."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest's only spelling, with a digest of itself: no flipped bit goes unseen."""
    body = {key: manifest[key] for key in ("format", "step", "epoch", "files")}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "manifest_sha256": digest}, indent=1).encode()


def _is_orphan(path: Path) -> bool:
    match = re.search(r"-([0-9a-f]{12})\.(\d+)\.(\d+)-[0-9a-f]{8}$", path.name)
    if match and match[1] == _machine_label():
        return process_start_ticks(int(match[2])) != int(match[3])
    try:
        return time.time() - path.stat().st_mtime > _ORPHAN_AGE_S
    except FileNotFoundError:
        return False


def _machine_label() -> str:
    return hashlib.sha256(host_identity().encode()).hexdigest()[:12]


def _process_label() -> str:
    return f"{os.getpid()}.{process_start_ticks(os.getpid())}"
