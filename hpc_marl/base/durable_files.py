"""Small private files that appear whole or not at all, and survive a crash of the machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def atomic_write(path: str | Path, content: bytes) -> None:
    """Replace the file `path` (mode 0600): readers and crashes see the old content or the new, never a part.

    Raises:
        OSError: the disk is full or the directory is missing; the old content stays.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        _write_new(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_exclusively(path: Path, content: bytes) -> bool:
    """Write the file `path` (mode 0600) unless there is one; return whether this call did it.

    Of several processes, on several machines of a network file system, exactly one does it.

    Raises:
        OSError: the disk is full or the directory is missing.
    """
    temporary = _temporary_name(path)
    try:
        _write_new(temporary, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS repeats a request whose reply was lost: the link is ours if the file has two names.
            if os.stat(temporary).st_nlink != 2:
                return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` survive a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _write_new(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # Closing reports what a network file system found out late, so it ends before the file gets its name.
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
