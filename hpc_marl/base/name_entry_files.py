"""Files of name entries in one flat directory, with operations that are safe on NFS.

NFS promises little: a file that was looked up and missing may stay missing for this machine for a minute,
`stat` may be as old, locks may be local, and the answer to a link or rename that happened may be lost. What
it does promise is used here: opening a *directory* asks the server whether what is cached about its names
still holds, opening a *file* asks the same about its contents, and link() is exclusive and rename() atomic on
the server.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from hpc_marl.base.mounts import LOCAL_FILE_SYSTEMS, mount_of
from hpc_marl.errors import NameResolveError

T = TypeVar("T")

_MAGIC = b"hpc_marl-name 1 "
_COUNTER_DIGITS = 20
_MAX_FILE_BYTES = 128 * 1024
_MAX_FILE_NAME_BYTES = 255
_LASTING_MODE = 0o400  # of an entry that cannot expire, which `stamps` sees without opening it
_READ_ATTEMPTS = 10
_READ_RETRY_S = 0.01
_SERVER_TICK_S = 0.02  # longer than one; see `settle`


@dataclass(frozen=True)
class Entry:
    """What one file says.

    Attributes:
        value: the entry's text.
        nonce: unique to the `add` call that made the entry: says whose it is.
        ttl_s: seconds without a change of `counter` after which the entry is dead; None for never.
        counter: the owner's signs of life so far.
        owner: host and pid of the process that added it, for messages.
    """

    value: str
    nonce: str
    ttl_s: float | None
    counter: int
    owner: str


class Stamp(NamedTuple):
    """What a directory tells of an entry without opening its file.

    Attributes:
        identity: another one for every entry that has ever had the name.
        can_expire: it may have a time to live, so that only a look into it says whether it is alive.
    """

    identity: tuple[int, int]
    can_expire: bool


def new_entry(value: str, ttl_s: float | None) -> Entry:
    """An entry of this process."""
    return Entry(value, uuid.uuid4().hex, ttl_s, 0, f"{socket.gethostname()}:{os.getpid()}")


def encode_entry(entry: Entry) -> bytes:
    """`hpc_marl-name 1 <counter> <checksum> <nonce> <ttl> <owner> <size>`, a newline, the value.

    The counter has a fixed place and width and is not part of the checksum: it is rewritten in place.
    """
    value = entry.value.encode()
    ttl = "-" if entry.ttl_s is None else repr(entry.ttl_s)
    rest = f" {entry.nonce} {ttl} {urllib.parse.quote(entry.owner)} {len(value)}\n".encode() + value
    return _MAGIC + _counter_bytes(entry.counter) + b" " + _checksum(rest) + rest


def decode_entry(data: bytes) -> Entry:
    """The inverse of `encode_entry`; raises ValueError for anything else, such as half an entry."""
    start = len(_MAGIC) + _COUNTER_DIGITS + 1
    checksum, rest = data[start : start + 16], data[start + 16 :]
    if not data.startswith(_MAGIC) or _checksum(rest) != checksum:
        raise ValueError(f"{len(data)} bytes that are not a whole name entry")
    header, _, value = rest.partition(b"\n")
    nonce, ttl, owner, size = header.decode().split()
    if int(size) != len(value):
        raise ValueError(f"expected {size} bytes of value, found {len(value)}")
    counter = int(data[len(_MAGIC) : len(_MAGIC) + _COUNTER_DIGITS])
    return Entry(
        value.decode(), nonce, None if ttl == "-" else float(ttl), counter, urllib.parse.unquote(owner)
    )


def _counter_bytes(counter: int) -> bytes:
    return b"%0*d" % (_COUNTER_DIGITS, counter)


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:16].encode()


def file_name_of(name: str) -> str:
    """The file name that stands for a name: percent-escaped, never hidden.

    >>> file_name_of("a/.b c"), name_of(file_name_of("a/.b c"))
    ('a%2F.b%20c', 'a/.b c')

    Raises:
        NameResolveError: the name is too long for a file name.
    """
    escaped = urllib.parse.quote(name, safe="")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) > _MAX_FILE_NAME_BYTES:
        raise NameResolveError(
            f"the name {name!r} takes {len(escaped)} bytes as a file name ('/' counts 3), at most "
            f"{_MAX_FILE_NAME_BYTES} are possible; use shorter experiment and trial names"
        )
    return escaped


def name_of(file_name: str) -> str:
    """The inverse of `file_name_of`."""
    # Nearly all names hold nothing but letters, digits and '/', and listings have thousands of them.
    slashed = file_name.replace("%2F", "/")
    return urllib.parse.unquote(file_name) if "%" in slashed else slashed


class EntryFiles:
    """The entries of one directory. Names that start with a dot are working files and no entries.

    Args:
        path: an existing directory.

    Attributes:
        path: the same.
        is_local: it is of this machine alone, where a look costs next to nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kind, _ = mount_of(path)
        self._is_nfs = kind.startswith("nfs")
        self.is_local = kind in LOCAL_FILE_SYSTEMS

    def listing(self) -> frozenset[str]:
        """The file names of all entries.

        Raises:
            NameResolveError: the directory cannot be listed.
        """
        return frozenset(self._scan(lambda items: [item.name for item in items if item.name[0] != "."]))

    def stamps(self, name: str, below: str) -> dict[str, Stamp]:
        """The stamps of the entry with a file name and of all that begin with `below`, by file name.

        Raises:
            NameResolveError: the directory cannot be listed.
        """
        return dict(self._scan(lambda items: _stamps_of(items, name, below)))

    def _scan(self, take: Callable[[Iterator[os.DirEntry[str]]], list[T]]) -> list[T]:
        problem = OSError()
        for attempt in range(_READ_ATTEMPTS):
            try:
                with os.scandir(self.path) as items:
                    return take(items)
            except OSError as error:
                problem = error
                if error.errno != errno.ESTALE:
                    break
                time.sleep(_READ_RETRY_S * attempt)
        raise NameResolveError(f"cannot list the names directory {self.path}: {problem}") from problem

    def read(self, file_name: str) -> Entry | None:
        """The entry in a file; None if there is no such file.

        Raises:
            NameResolveError: the file cannot be read, or does not become a whole entry.
        """
        problem = ""
        was_missing = False
        for attempt in range(_READ_ATTEMPTS):
            try:
                return decode_entry(self._read_bytes(file_name))
            except FileNotFoundError:
                if was_missing:
                    return None
                was_missing = True  # and look again: the file may be in the middle of being replaced
                continue
            except ValueError as error:
                problem = str(error)
            except OSError as error:
                if error.errno != errno.ESTALE:  # replaced on another host while we were opening it
                    raise NameResolveError(f"cannot read {self.path / file_name}: {error}") from error
                problem = str(error)
            time.sleep(_READ_RETRY_S * attempt)
        raise NameResolveError(
            f"{self.path / file_name} is not a name entry ({problem}); if it does not belong there, remove it"
        )

    def write_temporary(self, entry: Entry) -> Path:
        """Write the entry, whole and flushed, to a working file; other methods publish it.

        On a file system of this machine nothing is forced to the disk: whoever could read the entry reads it from
        memory, and after a crash of the machine nobody lives whom it names.
        """
        path = self.path / f".tmp.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"
        try:
            with open(path, "xb", opener=_open_private) as file:
                file.write(encode_entry(entry))
                file.flush()
                if entry.ttl_s is None:
                    os.fchmod(file.fileno(), _LASTING_MODE)
                if not self.is_local:
                    os.fsync(file.fileno())
        except OSError as error:
            raise NameResolveError(f"cannot write to the names directory {self.path}: {error}") from error
        return path

    def remove_temporary(self, path: Path) -> None:
        """Remove a working file, if it is still there."""
        self.unlink(path.name)

    def settle(self) -> None:
        """Let every host learn of the changes so far; without it, a few would take up to a minute.

        An NFS client lists a directory anew when its time of change is another than at the last listing, and
        servers take that time from a clock that ticks every 1 to 10 ms. A client that lists the directory
        after one change, but before a second one in the same tick, will see no difference and keep what it
        has. One more change, in a later tick, lets everybody look again.
        """
        if self._is_nfs:
            time.sleep(_SERVER_TICK_S)
            with contextlib.suppress(OSError):  # a quota or a vanished directory: the change itself was made
                os.utime(self.path)

    def link(self, temporary: Path, file_name: str) -> bool:
        """Publish a working file under a name that is free; False if it is not. Exclusive among all hosts."""
        try:
            os.link(temporary, self.path / file_name)
        except OSError as error:
            # The server may have made the link and its answer been lost; the repetition then says "exists".
            if _num_links(temporary) == 2:
                return True
            if isinstance(error, FileExistsError):
                return False
            raise NameResolveError(f"cannot link {temporary} as {file_name}: {error}") from error
        return True

    def replace(self, temporary: Path, file_name: str, nonce: str) -> None:
        """Publish a working file, which holds the entry with this nonce, under a name, taken or not."""
        try:
            temporary.replace(self.path / file_name)
        except OSError as error:
            found = self.read(file_name)  # as with link: the error may be about the answer only
            if found is None or found.nonce != nonce:
                raise NameResolveError(f"cannot rename {temporary} to {file_name}: {error}") from error

    def take_over(self, temporary: Path, file_name: str, dead: Entry, nonce: str) -> bool:
        """Put a working file in the place of a dead entry; False if somebody else has been faster.

        Renaming the dead file away would leave the name free for a moment, and a slow process could rename
        away its successor. Instead the right to succeed is claimed by a link that is named after the dead
        entry's nonce: exclusive, so one process at a time holds it, and that one makes sure that the dead
        entry is still there.
        """
        claim = f".heir.{dead.nonce}"
        if not self.link(temporary, claim):
            return False
        current = self.read(file_name)
        if current is None or current.nonce != dead.nonce:
            self.unlink(claim)
            return current is None and self.link(temporary, file_name)
        self.replace(self.path / claim, file_name, nonce)
        return True

    def finish_take_over(self, file_name: str, dead: Entry) -> None:
        """Do for a process that died inside `take_over` what it had left to do."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / f".heir.{dead.nonce}").replace(self.path / file_name)

    def beat(self, file_name: str, nonce: str, counter: int) -> bool:
        """Write a sign of life into an entry; False if the entry is no longer the one with this nonce.

        It is written in place, through the descriptor on which the nonce was read: whatever happens to the
        name meanwhile, no other entry is touched and none comes back that was deleted. A torn counter is
        harmless: readers only ask whether it has changed.
        """
        try:
            with self._opened(file_name, os.O_RDWR) as fd:
                if decode_entry(os.read(fd, _MAX_FILE_BYTES)).nonce != nonce:
                    return False
                os.pwrite(fd, _counter_bytes(counter), len(_MAGIC))
                os.fsync(fd)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise NameResolveError(f"cannot keep {self.path / file_name} alive: {error}") from error
        return True

    def unlink(self, file_name: str) -> bool:
        """Remove a file, whosever it is; False if there is none."""
        try:
            (self.path / file_name).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise NameResolveError(f"cannot remove {self.path / file_name}: {error}") from error
        return True

    def unlink_if(self, file_name: str, nonce: str) -> bool:
        """Remove an entry if it is the one with this nonce; False if it is not.

        The file is moved aside before its nonce is believed, so that a successor that appears in between is
        not lost: it is put back.
        """
        found = self.read(file_name)
        if found is None or found.nonce != nonce:
            return False
        aside = f".gone.{uuid.uuid4().hex}"
        try:
            (self.path / file_name).rename(self.path / aside)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise NameResolveError(f"cannot remove {self.path / file_name}: {error}") from error
        moved = self.read(aside)
        is_ours = moved is None or moved.nonce == nonce
        if not is_ours:
            self.link(self.path / aside, file_name)
        self.unlink(aside)
        return is_ours

    def _read_bytes(self, file_name: str) -> bytes:
        with self._opened(file_name, os.O_RDONLY) as fd:
            parts = []
            while part := os.read(fd, _MAX_FILE_BYTES):
                parts.append(part)
        return b"".join(parts)

    @contextlib.contextmanager
    def _opened(self, file_name: str, flags: int) -> Iterator[int]:
        try:
            directory_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise
            raise NameResolveError(f"cannot open the names directory {self.path}: {error}") from error
        try:
            fd = os.open(file_name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
        try:
            yield fd
        finally:
            os.close(fd)


def _stamps_of(items: Iterator[os.DirEntry[str]], name: str, below: str) -> list[tuple[str, Stamp]]:
    found = []
    for item in items:
        file_name = item.name
        if not file_name.startswith(below) and file_name != name:
            continue
        try:
            status = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        can_expire = status.st_mode & stat.S_IWUSR != 0
        found.append((file_name, Stamp((status.st_ino, status.st_mtime_ns), can_expire)))
    return found


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _num_links(path: Path) -> int:
    """Asks the server, as opening does and stat() need not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_nlink
    finally:
        os.close(fd)
