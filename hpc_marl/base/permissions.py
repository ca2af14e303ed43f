"""Refuse directories and files that other users could read or replace, as sshd's StrictModes does.

Refused: a foreign owner, any permission for group or others, a symbolic link, an access control list that
grants more, and an ancestor that others can write to (a sticky one, such as /tmp, is fine: nobody can rename
there what is not theirs). Every message ends with the command that puts it right.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from hpc_marl.errors import SecurityError

_POSIX_ACL = "system.posix_acl_access"
_NFS4_ACL = "system.nfs4_acl"
_ACL_NAMED_USER, _ACL_NAMED_GROUP, _ACL_MASK = 0x02, 0x08, 0x10
_NFS4_ALLOW, _NFS4_INHERIT_ONLY = 0, 0x8
# read, write, append, execute, delete child, delete, write the ACL, take ownership; the rest is harmless
_NFS4_HARMFUL = 0x1 | 0x2 | 0x4 | 0x20 | 0x40 | 0x10000 | 0x40000 | 0x80000


def check_private_directory(path: str | Path) -> None:
    """Return if only this user can read, change or replace the directory `path`.

    Raises:
        SecurityError: otherwise; the message says why, and the command that puts it right.
    """
    path = Path(os.path.abspath(path))
    status = _lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise SecurityError(
            f"{path} is a symbolic link; expected a directory: use its target {path.resolve()}"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise SecurityError(f"{path} is not a directory; remove it or choose another place")
    _check_own(path, status, "700")
    _check_acl(path)
    _check_ancestors(path)


def check_private_file(descriptor: int, path: Path) -> None:
    """Return if the open file `descriptor` is a regular file that only this user can read or write.

    Checking the descriptor rather than the path leaves no moment in which the file could be exchanged.

    Raises:
        SecurityError: otherwise; `path` appears in the message.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise SecurityError(f"{path} is not a regular file; remove it")
    _check_own(path, status, "600")
    _check_acl(path, descriptor)


def make_private_directory(path: str | Path) -> Path:
    """Create the directory `path` and its missing ancestors with mode 0700 where absent, check it, return it.

    Raises:
        SecurityError: it is there, or stands in a place, that others can write to.
    """
    path = Path(os.path.abspath(path))
    missing: list[Path] = []
    current = path
    while not os.path.lexists(current):
        missing.append(current)
        current = current.parent
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            continue  # Another process of ours was faster; the check below judges what it made.
    check_private_directory(path)
    return path


def _lstat(path: Path) -> os.stat_result:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        raise SecurityError(f"{path} does not exist") from None
    except OSError as error:
        raise SecurityError(f"{path} cannot be examined: {error.strerror}") from error


def _check_own(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise SecurityError(
            f"{path} belongs to {_user(status.st_uid)}, expected {_user(os.geteuid())}: "
            "remove it or choose a place of your own"
        )
    if status.st_mode & 0o077:
        raise SecurityError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, expected 0{mode}; "
            f"run: chmod {mode} {shlex.quote(str(path))}"
        )


def _check_ancestors(path: Path) -> None:
    for ancestor in _ancestors(path):
        status = _lstat(ancestor)
        if status.st_uid not in _trusted_owners():
            raise SecurityError(
                f"{ancestor} belongs to {_user(status.st_uid)}, who could replace {path}: "
                "choose a place below directories of root or your own"
            )
        if stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX:
            continue
        writers = status.st_mode & 0o022
        if writers & 0o020 and _is_private_group(status):
            writers &= ~0o020
        if writers:
            letters = ("g" if writers & 0o020 else "") + ("o" if writers & 0o002 else "")
            raise SecurityError(
                f"{ancestor} (mode {stat.S_IMODE(status.st_mode):04o}) can be written by others, who could "
                f"replace {path}; run: chmod {letters}-w {shlex.quote(str(ancestor))}"
            )


def _ancestors(path: Path) -> Iterator[Path]:
    """Yield the directories and links that lead to `path` as written, then those it really lies in."""
    seen = {path}
    for parent in (*path.parents, *path.resolve().parents):
        if parent not in seen:
            seen.add(parent)
            yield parent


def _trusted_owners() -> set[int]:
    """Return root, this user, and inside a container the uid that stands for everyone not mapped there."""
    trusted = {0, os.geteuid()}
    uid_map = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    if uid_map != ["0", "0", "4294967295"]:
        trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii")))
    return trusted


def _is_private_group(status: os.stat_result) -> bool:
    """Return whether the group is the owner's own (same name, nobody else in it), as umask 002 assumes."""
    try:
        owner = pwd.getpwuid(status.st_uid)
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return (
        owner.pw_gid == status.st_gid
        and group.gr_name == owner.pw_name
        and set(group.gr_mem) <= {owner.pw_name}
    )


def _check_acl(path: Path, descriptor: int | None = None) -> None:
    target = path if descriptor is None else descriptor
    for attribute, grants_more, remedy in (
        (_POSIX_ACL, posix_acl_grants_more, "setfacl -b"),
        (_NFS4_ACL, nfs4_acl_grants_more, "nfs4_setfacl -s A::OWNER@:rwaDdxtTnNcCoy"),
    ):
        try:
            acl = os.getxattr(target, attribute)
        except OSError:
            continue  # The file system has no such lists, or this file has none.
        if grants_more(acl):
            raise SecurityError(
                f"{path} has an access control list ({attribute}) that lets others in; "
                f"run: {remedy} {shlex.quote(str(path))}"
            )


def posix_acl_grants_more(acl: bytes) -> bool:
    """Return whether a `system.posix_acl_access` value names a user or group with any permission left.

    Layout: version u32, then entries (tag u16, permissions u16, id u32), all little-endian.
    """
    entries = [struct.unpack_from("<HHI", acl, offset) for offset in range(4, len(acl) - 7, 8)]
    mask = next((permissions for tag, permissions, _ in entries if tag == _ACL_MASK), 0o7)
    return any(
        tag in (_ACL_NAMED_USER, _ACL_NAMED_GROUP) and permissions & mask for tag, permissions, _ in entries
    )


def nfs4_acl_grants_more(acl: bytes) -> bool:
    """Return whether a `system.nfs4_acl` value allows anyone but the owner to read, change or replace.

    Layout (XDR, big-endian): count u32, then entries (type u32, flags u32, access mask u32, who string).
    An entry that cannot be read counts as one that grants more.
    """
    own = {"OWNER@", str(os.geteuid())} | _own_names()
    try:
        (count,) = struct.unpack_from(">I", acl, 0)
        offset = 4
        for _ in range(count):
            kind, flags, access, length = struct.unpack_from(">IIII", acl, offset)
            who = acl[offset + 16 : offset + 16 + length].decode("utf-8", errors="replace")
            offset += 16 + (length + 3) // 4 * 4
            effective = kind == _NFS4_ALLOW and not flags & _NFS4_INHERIT_ONLY
            if effective and access & _NFS4_HARMFUL and who not in own and who.partition("@")[0] not in own:
                return True
    except struct.error:
        return True
    return False


def _own_names() -> set[str]:
    try:
        return {pwd.getpwuid(os.geteuid()).pw_name}
    except KeyError:
        return set()


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
