from __future__ import annotations

import os
import re
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_marl.base import permissions
from hpc_marl.base.permissions import (
    check_private_directory,
    make_private_directory,
    nfs4_acl_grants_more,
    posix_acl_grants_more,
)
from hpc_marl.base.security import (
    KEY_FILE_NAME,
    Keyring,
    create_keyring,
    default_keyring,
    load_keyring,
    sign,
    verify,
)
from hpc_marl.errors import SecurityError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def test_keys_are_made_private_and_load_equal(tmp_path: Path) -> None:
    made = create_keyring(tmp_path / "run" / "auth")
    assert load_keyring(made.directory) == made
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.directory / KEY_FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in made.directory.iterdir()] == [KEY_FILE_NAME]


def test_a_permissive_umask_changes_nothing(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        made = create_keyring(tmp_path / "new" / "auth")
    finally:
        os.umask(previous)
    assert load_keyring(made.directory) == made


def test_keys_are_not_overwritten(tmp_path: Path) -> None:
    made = create_keyring(tmp_path / "auth")
    with pytest.raises(SecurityError, match="is there already"):
        create_keyring(tmp_path / "auth")
    assert load_keyring(tmp_path / "auth") == made


def test_secrets_are_not_shown(keyring: Keyring) -> None:
    shown = repr(keyring)
    for secret in (keyring.client_secret, keyring.server_secret, keyring.mac_key):
        assert repr(secret) not in shown
    assert str(keyring.directory) in shown


def test_keyrings_share_no_key(keyring: Keyring, other_keyring: Keyring) -> None:
    def keys(ring: Keyring) -> set[bytes]:
        return {ring.client_public, ring.client_secret, ring.server_public, ring.server_secret, ring.mac_key}

    assert len(keys(keyring) | keys(other_keyring)) == 10


def _missing(directory: Path) -> None:
    (directory / KEY_FILE_NAME).unlink()


def _open_file(directory: Path) -> None:
    (directory / KEY_FILE_NAME).chmod(0o640)


def _open_directory(directory: Path) -> None:
    directory.chmod(0o750)


def _searchable_directory(directory: Path) -> None:
    directory.chmod(0o701)


def _linked_file(directory: Path) -> None:
    file = directory / KEY_FILE_NAME
    file.rename(directory / "elsewhere")
    file.symlink_to(directory / "elsewhere")


def _linked_directory(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to(directory.with_name("elsewhere"))


def _writable_parent(directory: Path) -> None:
    directory.parent.chmod(0o757)


def _writable_grandparent(directory: Path) -> None:
    directory.parent.parent.chmod(0o702)


def _fifo(directory: Path) -> None:
    _missing(directory)
    os.mkfifo(directory / KEY_FILE_NAME, 0o600)


def _file_for_directory(directory: Path) -> None:
    _missing(directory)
    directory.rmdir()
    directory.touch(0o600)


def _garbage(directory: Path) -> None:
    (directory / KEY_FILE_NAME).write_bytes(b"\x80\x04garbage")


def _cut(directory: Path) -> None:
    content = (directory / KEY_FILE_NAME).read_bytes()
    (directory / KEY_FILE_NAME).write_bytes(content[: len(content) // 2])


def _wrong_key_size(directory: Path) -> None:
    (directory / KEY_FILE_NAME).write_bytes(
        b'{"version":1,"client_secret":"abc","server_secret":"abc","seed":"00"}'
    )


def _other_version(directory: Path) -> None:
    content = (directory / KEY_FILE_NAME).read_bytes()
    (directory / KEY_FILE_NAME).write_bytes(content.replace(b'"version":1', b'"version":2'))


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (_missing, "no key file .*run.key"),
        (_open_file, r"mode 0640, expected 0600; run: chmod 600 .*/auth/run\.key$"),
        (_open_directory, r"mode 0750, expected 0700; run: chmod 700 .*/auth$"),
        (_searchable_directory, r"mode 0701, expected 0700; run: chmod 700 .*/auth$"),
        (_linked_file, "is a symbolic link"),
        (_linked_directory, "is a symbolic link"),
        (_writable_parent, r"could replace .*run: chmod o-w .*/parent$"),
        (_writable_grandparent, r"could replace .*run: chmod o-w .*/grandparent$"),
        (_fifo, "not a regular file"),
        (_file_for_directory, "not a directory"),
        (_garbage, "not a key file"),
        (_cut, "not a key file"),
        (_wrong_key_size, "not a key file"),
        (_other_version, "version 2, expected 1"),
    ],
)
def test_keys_others_could_touch_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], remedy: str
) -> None:
    directory = create_keyring(tmp_path / "grandparent" / "parent" / "auth").directory
    spoil(directory)
    with pytest.raises(SecurityError, match=remedy):
        load_keyring(directory)


def test_the_remedy_is_one(tmp_path: Path) -> None:
    directory = create_keyring(tmp_path / "with space" / "auth").directory
    directory.parent.chmod(0o777)
    with pytest.raises(SecurityError) as caught:
        load_keyring(directory)
    os.system(re.split("run: ", str(caught.value))[1])
    assert load_keyring(directory).directory == directory


def test_a_sticky_ancestor_is_fine(tmp_path: Path) -> None:
    directory = create_keyring(tmp_path / "shared" / "auth").directory
    directory.parent.chmod(0o1777)
    assert load_keyring(directory).directory == directory


def test_a_linked_ancestor_is_followed(tmp_path: Path) -> None:
    create_keyring(tmp_path / "real" / "auth")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    load_keyring(tmp_path / "link" / "auth")
    (tmp_path / "real").chmod(0o777)
    with pytest.raises(SecurityError, match=r"real \(mode 0777\)"):
        load_keyring(tmp_path / "link" / "auth")


def test_the_owners_own_group_may_write_to_an_ancestor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = create_keyring(tmp_path / "parent" / "auth").directory
    directory.parent.chmod(0o770)
    monkeypatch.setattr(permissions, "_is_private_group", lambda status: True)
    load_keyring(directory)
    monkeypatch.setattr(permissions, "_is_private_group", lambda status: False)
    with pytest.raises(SecurityError, match="chmod g-w"):
        load_keyring(directory)


def test_a_foreign_user_sees_that_it_is_not_his(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = create_keyring(tmp_path / "auth").directory
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 4711)
    with pytest.raises(SecurityError, match=rf"auth belongs to .*uid {uid}.*expected uid {uid + 4711}"):
        load_keyring(directory)


@needs_root
@pytest.mark.parametrize("what", ["directory", "file", "ancestor"])
def test_foreign_owners_are_refused(tmp_path: Path, what: str) -> None:
    directory = create_keyring(tmp_path / "parent" / "auth").directory
    victim = {"directory": directory, "file": directory / KEY_FILE_NAME, "ancestor": directory.parent}[what]
    os.chown(victim, 12345, 12345)
    with pytest.raises(SecurityError, match=f"{victim} belongs to uid 12345"):
        load_keyring(directory)


def test_a_private_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    made = make_private_directory(tmp_path / "a" / "b" / "c")
    check_private_directory(made)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [0o700, 0o700]
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(SecurityError, match="chmod 700"):
        make_private_directory(tmp_path / "open")


def _posix_acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, GROUP, OTHER = (0x01, 7, 0xFFFFFFFF), (0x04, 0, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("entries", "grants_more"),
    [
        ((OWNER, GROUP, OTHER), False),
        ((OWNER, (0x02, 7, 1001), GROUP, (0x10, 7, 0), OTHER), True),
        ((OWNER, (0x08, 4, 1001), GROUP, (0x10, 4, 0), OTHER), True),
        ((OWNER, (0x02, 7, 1001), GROUP, (0x10, 0, 0), OTHER), False),
        ((OWNER, (0x02, 0, 1001), GROUP, (0x10, 7, 0), OTHER), False),
    ],
)
def test_posix_acls_are_understood(entries: tuple[tuple[int, int, int], ...], grants_more: bool) -> None:
    assert posix_acl_grants_more(_posix_acl(*entries)) is grants_more


def _nfs4_acl(*entries: tuple[int, int, int, bytes]) -> bytes:
    packed = struct.pack(">I", len(entries))
    for kind, flags, access, who in entries:
        padding = b"\0" * (-len(who) % 4)
        packed += struct.pack(">IIII", kind, flags, access, len(who)) + who + padding
    return packed


@pytest.mark.parametrize(
    ("acl", "grants_more"),
    [
        (
            _nfs4_acl(
                (0, 0, 0x1F01FF, b"OWNER@"), (0, 0, 0x120080, b"GROUP@"), (0, 0, 0x120080, b"EVERYONE@")
            ),
            False,
        ),
        (_nfs4_acl((0, 0, 0x1F01FF, b"OWNER@"), (0, 0, 0x1, b"EVERYONE@")), True),
        (_nfs4_acl((0, 0x40, 0x2, b"staff@site.org")), True),
        (_nfs4_acl((1, 0, 0x1F01FF, b"EVERYONE@")), False),
        (_nfs4_acl((0, 0xB, 0x1F01FF, b"EVERYONE@")), False),
        (_nfs4_acl((0, 0, 0x1F01FF, str(os.geteuid()).encode())), False),
        (_nfs4_acl((0, 0, 0x1, b"EVERYONE@"))[:-6], True),
        (b"", True),
    ],
)
def test_nfs4_acls_are_understood(acl: bytes, grants_more: bool) -> None:
    assert nfs4_acl_grants_more(acl) is grants_more


def test_an_acl_on_the_key_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = create_keyring(tmp_path / "auth").directory

    def getxattr(target: object, name: str) -> bytes:
        if isinstance(target, int) and name == "system.nfs4_acl":
            return _nfs4_acl((0, 0, 0x1, b"bob@site.org"))
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "getxattr", getxattr)
    with pytest.raises(SecurityError, match=r"run\.key has an access control list .*nfs4_setfacl -s"):
        load_keyring(directory)


def test_signed_text_comes_back(keyring: Keyring) -> None:
    token = sign(keyring, "host äöü\n42")
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert verify(keyring, token) == "host äöü\n42"


def test_changed_or_foreign_signatures_are_refused(keyring: Keyring, other_keyring: Keyring) -> None:
    token = sign(keyring, "10.0.0.1:4711")
    for position in range(len(token)):
        changed = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
        with pytest.raises(SecurityError):
            verify(keyring, changed)
    for broken in ("", "=", "%%%", token[:-4], token + "AAAA", "ä"):
        with pytest.raises(SecurityError):
            verify(keyring, broken)
    with pytest.raises(SecurityError, match=str(other_keyring.directory)):
        verify(other_keyring, token)


def test_the_default_keyring_is_made_once_by_racing_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_MARL_KEY_DIR", str(tmp_path / "a" / "keys"))
    found: list[Keyring] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        found.append(default_keyring())

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(keyring == found[0] for keyring in found)


def test_the_default_keyring_lies_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPC_MARL_KEY_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_keyring().directory == tmp_path / ".config" / "hpc_marl" / "rpc"
    (tmp_path / ".config" / "hpc_marl" / "rpc").chmod(0o755)
    with pytest.raises(SecurityError, match="chmod 700"):
        default_keyring()
