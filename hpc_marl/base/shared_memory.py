"""Shared memory of one node without names: nothing in /dev/shm, nothing to clean up after kill -9.

    creator   create() -> anonymous file (memfd), mapped          handle() travels in an authenticated message
    reader    attach(handle) -> opens /proc/<pid>/fd/<fd> of the creator, checks it, maps the same pages

The kernel frees the pages with the last mapping. So a reader's mapping outlives the creator (also after
kill -9), and no crash of anyone leaves anything behind.

A handle is only as good as the creator's life: once that process has ended, pid and fd number may belong to
another. `attach` therefore accepts a file only if the process has the start time of the handle, the file is a
memfd of this user and of the announced size, sealed against resizing (a shrinking file would kill its readers
with SIGBUS), and its first page holds the random token of the handle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import mmap
import os
import secrets
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from hpc_marl.base.network import process_start_ticks
from hpc_marl.errors import StreamError

_MAGIC = b"hpcmarl1"
_HEADER = struct.Struct("<8s16sQ")  # magic, token, payload size
_HEADER_BYTES = 4096  # a page, so that the payload is page-aligned
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MAX_LABEL_BYTES = 200  # the kernel's limit is 249
_FENCE = threading.Lock()


class SharedMemoryHandle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What another process of this node needs to attach; plain values, fit for a message or a name entry."""

    pid: int
    fd: int
    size: int
    """Bytes of the payload."""
    start_ticks: int
    """Start time of the process in clock ticks since boot: tells it from a later one with the same pid."""
    token: bytes
    """16 random bytes, also in the memory itself: tell it from a later file under the same descriptor."""


@dataclass(frozen=True)
class _Source:
    """The creator's descriptor, and the file that was behind it."""

    path: str
    device: int
    inode: int

    @classmethod
    def of(cls, path: str, fd: int) -> _Source:
        status = os.fstat(fd)
        return cls(path, status.st_dev, status.st_ino)

    def is_there(self) -> bool:
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)


class SharedMemory:
    """One mapped block of shared memory; see the module's text.

    Not thread-safe by itself: whoever shares the buffer agrees on who writes what.

    Example:
        >>> with SharedMemory.create(64, "example") as mine, SharedMemory.attach(mine.handle()) as theirs:
        ...     mine.buffer[:5] = b"hello"
        ...     bytes(theirs.buffer[:5])
        b'hello'
    """

    def __init__(self, mapping: mmap.mmap, fd: int, token: bytes, size: int, source: _Source) -> None:
        """Use `create` or `attach`."""
        self._mapping = mapping
        self._fd = fd
        self._token = token
        self._size = size
        self._source = source
        self._whole = memoryview(mapping)
        self._buffer = self._whole[_HEADER_BYTES : _HEADER_BYTES + size]

    @classmethod
    def create(cls, size: int, label: str) -> SharedMemory:
        """Return a new zeroed block of `size` bytes.

        Args:
            size: payload, in bytes; pages are only taken from the machine once they are written.
            label: shown by /proc/<pid>/fd and in memory maps; need not be unique.

        Raises:
            StreamError: the kernel grants no such block.
        """
        if size < 1:
            raise StreamError(f"shared memory needs a positive size, not {size}")
        name = label.encode(errors="replace")[:_MAX_LABEL_BYTES].replace(b"\0", b"").decode(errors="ignore")
        token = secrets.token_bytes(16)
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise StreamError(f"cannot create {size} bytes of shared memory {label!r}: {error}") from error
        try:
            os.ftruncate(fd, _HEADER_BYTES + size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            mapping = mmap.mmap(fd, _HEADER_BYTES + size)
        except (OSError, OverflowError) as error:
            os.close(fd)
            raise StreamError(f"cannot create {size} bytes of shared memory {label!r}: {error}") from error
        _HEADER.pack_into(mapping, 0, _MAGIC, token, size)
        return cls(mapping, fd, token, size, _Source.of(f"/proc/self/fd/{fd}", fd))

    @classmethod
    def attach(cls, handle: SharedMemoryHandle, *, writable: bool = True) -> SharedMemory:
        """Return a mapping of the block that `handle` describes.

        Args:
            handle: from the creator, of this node and the same uid.
            writable: False maps the pages read-only.

        Raises:
            StreamError: the creator is gone, or what is there now is not this block; use another transport.
        """
        if handle.size < 1 or len(handle.token) != 16:
            raise StreamError(f"a handle of {handle.size} bytes with a token of {len(handle.token)} bytes")
        if process_start_ticks(handle.pid) != handle.start_ticks:
            raise StreamError(f"process {handle.pid}, creator of the shared memory, is gone or out of sight")
        fd = _open_descriptor(handle, writable)
        try:
            mapping = _map_checked(fd, handle, writable)
            source = _Source.of(_descriptor_path(handle), fd)
        except (OSError, ValueError, OverflowError) as error:
            raise StreamError(f"cannot map the shared memory of process {handle.pid}: {error}") from error
        finally:
            os.close(fd)  # the mapping keeps its own
        return cls(mapping, -1, handle.token, handle.size, source)

    def handle(self) -> SharedMemoryHandle:
        """Return what another process needs to attach.

        Raises:
            StreamError: this block was attached (only its creator can hand it on) or is closed.
        """
        if self._fd < 0:
            raise StreamError("only the creator of shared memory that is still open can hand it on")
        pid = os.getpid()
        ticks = process_start_ticks(pid)
        if ticks is None:
            raise StreamError("/proc is not mounted: shared memory cannot be handed to another process")
        return SharedMemoryHandle(pid, self._fd, self._size, ticks, self._token)

    @property
    def buffer(self) -> memoryview:
        """The payload; page-aligned."""
        return self._buffer

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return self._size

    def creator_holds(self) -> bool:
        """Return whether the creator is alive and has not closed the block."""
        return self._source.is_there()

    def close(self) -> None:
        """Let go of the block; arrays that still view it stay valid, the last one to go unmaps it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(BufferError):  # views are alive: the mapping goes with them
            self._buffer.release()
            self._whole.release()
            self._mapping.close()

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def fence() -> None:
    """Keep what this thread reads and writes before apart from what it reads and writes after: a full memory barrier.

    Python has none of its own, but a lock that is taken is an acquire and one that is given back a release. Nothing
    before the first release moves behind the second acquire, which comes after it, and nothing after that moves before
    it. About 0.2 us.
    """
    with _FENCE:
        pass
    with _FENCE:
        pass


def _nothing() -> None:
    pass


keep_order: Callable[[], None] = _nothing if os.uname().machine == "x86_64" else fence
"""Keep the writes before it apart from those after it, and the reads from the reads: a `fence` but for a write and a
later read. x86 processors never exchange any others, so there it costs nothing."""


def _descriptor_path(handle: SharedMemoryHandle) -> str:
    return f"/proc/{handle.pid}/fd/{handle.fd}"


def _open_descriptor(handle: SharedMemoryHandle, writable: bool) -> int:
    path = _descriptor_path(handle)
    try:
        target = os.readlink(path)
        if not target.startswith("/memfd:"):
            raise StreamError(f"{path} is {target}, not shared memory: the descriptor was reused")
        # O_NONBLOCK: if it became a pipe since the check, the open must not wait for a peer
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StreamError(f"cannot open {path}: {error.strerror}") from error


def _map_checked(fd: int, handle: SharedMemoryHandle, writable: bool) -> mmap.mmap:
    whole = _HEADER_BYTES + handle.size
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != whole:
        raise StreamError(f"shared memory of {status.st_size} bytes where {whole} were announced")
    if status.st_uid != os.geteuid():
        raise StreamError(f"the shared memory belongs to uid {status.st_uid}, not to {os.geteuid()}")
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise StreamError("the shared memory is not sealed: its creator could shrink it under its readers")
    mapping = mmap.mmap(fd, whole, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    magic, token, size = _HEADER.unpack_from(mapping, 0)
    if magic != _MAGIC or size != handle.size or not hmac.compare_digest(token, handle.token):
        mapping.close()
        raise StreamError("other shared memory stands under this descriptor now: the token differs")
    return mapping
