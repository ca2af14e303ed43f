"""The name service: small texts under '/'-separated names, by which the processes of a trial find each other.

    resolver = FileNameResolver(run_directory / "names")      or MemoryNameResolver() within one process
    name_resolve.configure(resolver)                          makes it the default of the functions below
    name_resolve.add(names.worker("exp", "trial", "actor/0"), "10.0.0.7:4711")
    resolver.close()                                          deletes what this process added

Every backend keeps the contract written on `NameResolver`; tests/unit/base/test_name_resolve_contract.py
holds them to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from hpc_marl.base.name_watch import NameWatch
from hpc_marl.errors import NameResolveError

MAX_VALUE_BYTES = 64 * 1024

Resolver = TypeVar("Resolver", bound="NameResolver")


class NameResolver(ABC):
    """What every backend of the name service can do. All methods may be called from several threads.

    A *name* is a non-empty sequence of components joined by '/'; none may be empty, '.' or '..'. 'a/b' and
    'a/b/c' may both exist. 'a/bc' is not below 'a/b'. A *value* is any text of at most 64 KiB in UTF-8.

    An entry that was added with `keepalive_ttl` lives for as long as the resolver that added it stays open in
    a living process, and counts as absent, everywhere, some time after: never before `keepalive_ttl` seconds
    without a sign of life, and at the latest `keepalive_ttl` seconds after the observer has first looked.
    """

    @abstractmethod
    def add(
        self,
        name: str,
        value: str,
        keepalive_ttl: float | None = None,
        replace: bool = False,
        delete_on_exit: bool = True,
    ) -> None:
        """Store `value` under `name`. Of several processes that add one name at once, exactly one succeeds.

        Args:
            name: the entry's name.
            value: the entry's text.
            keepalive_ttl: seconds without a sign of life from this resolver after which the entry counts as
            absent;
                None for an entry that does not expire.
            replace: overwrite an existing entry instead of raising. Who was overwritten no longer owns the
            name. delete_on_exit: `close()` deletes the entry, unless somebody else has replaced it since.

        Raises:
            NameEntryExistsError: the name is taken and `replace` is False.
            NameResolveError: the name or value is not allowed, or the storage fails.
        """

    @abstractmethod
    def get(self, name: str) -> str:
        """The value stored under `name`.

        Raises:
            NameEntryNotFoundError: there is none, or it has expired.
        """

    @abstractmethod
    def wait(self, name: str, timeout: float | None = None) -> str:
        """Wait for `name` to exist and return its value; a `timeout` (seconds) of None waits for ever.

        Raises:
            NameWaitTimeoutError: it did not appear; the message says what was there instead.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete this one entry, whoever added it; entries below it stay.

        Raises:
            NameEntryNotFoundError: there is none, or it has expired.
        """

    @abstractmethod
    def find_subtree(self, name_root: str) -> list[str]:
        """The sorted names that equal `name_root` or lie below it; empty if there are none."""

    @abstractmethod
    def get_subtree(self, name_root: str) -> list[str]:
        """The values of `find_subtree(name_root)`, in that order."""

    @abstractmethod
    def get_items(self, name_root: str) -> dict[str, str]:
        """The names and values of `name_root` and all below it, sorted by name; cheap enough to be asked often."""

    @property
    def look_interval_s(self) -> float:
        """How soon it is worth to look again for a name that is not there [s]: a shared file system serves many."""
        return 0.5

    @abstractmethod
    def clear_subtree(self, name_root: str) -> None:
        """Delete `name_root` and everything below it; nothing to delete is not an error."""

    @abstractmethod
    def watch_names(
        self, names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float = 1.0
    ) -> NameWatch:
        """Call `callback(name)` once for each of `names` as soon as it is absent: deleted, expired, or never
        there.

        All watches of a resolver share one thread, in which the callback runs: keep it short. What the
        callback raises, and trouble with looking, is logged and kept in the handle's `error`; the other names
        stay watched.

        Args:
            names: the names to watch, at least one.
            callback: takes the vanished name.
            poll_interval_s: how often to look, in seconds.
        """

    @abstractmethod
    def close(self) -> None:
        """End all watches and keep-alives and delete the `delete_on_exit` entries that are still this
        resolver's own.

        Entries with a `keepalive_ttl` that are not deleted expire. Closing twice is harmless.
        """

    def __enter__(self: Resolver) -> Resolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_name(name: str) -> str:
    """Return `name` if it is one.

    Raises:
        NameResolveError: a component is empty, '.' or '..', or a character cannot be encoded.
    """
    if not all(part not in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise NameResolveError(
            f"not a name: {name!r}; expected components joined by single '/', none of them empty, '.' or '..'"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise NameResolveError(f"not a name: {name!r} cannot be encoded as UTF-8") from error
    return name


def check_value(value: str) -> bytes:
    """Return `value` encoded, if an entry can hold it.

    Raises:
        NameResolveError: it is larger than 64 KiB or cannot be encoded.
    """
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise NameResolveError("the value of a name cannot be encoded as UTF-8") from error
    if len(encoded) > MAX_VALUE_BYTES:
        raise NameResolveError(
            f"the value of a name may have {MAX_VALUE_BYTES} bytes, found {len(encoded)}; "
            "store large things in a file and publish its path"
        )
    return encoded


def check_ttl(keepalive_ttl: float | None) -> None:
    """Raise NameResolveError unless `keepalive_ttl` is None or a positive number of seconds."""
    if keepalive_ttl is not None and not keepalive_ttl > 0:
        raise NameResolveError(f"keepalive_ttl must be positive seconds or None, found {keepalive_ttl!r}")


def is_in_subtree(name: str, name_root: str) -> bool:
    """Whether `name` is `name_root` or lies below it, component-wise.

    >>> is_in_subtree("foo/bar", "foo"), is_in_subtree("foobar", "foo")
    (True, False)
    """
    return name == name_root or name.startswith(name_root + "/")


class _Default:
    """Holder of the process-wide resolver."""

    resolver: NameResolver | None = None


_default = _Default()


def configure(resolver: NameResolver | None) -> None:
    """Make `resolver` (None: no one) that of this module's functions. It stays its creator's to close."""
    _default.resolver = resolver


def default_resolver() -> NameResolver:
    """The resolver that `configure` has set.

    Raises:
        NameResolveError: none was set.
    """
    if _default.resolver is None:
        raise NameResolveError(
            "no name service in this process; call name_resolve.configure(FileNameResolver(directory)) first"
        )
    return _default.resolver


def add(
    name: str,
    value: str,
    keepalive_ttl: float | None = None,
    replace: bool = False,
    delete_on_exit: bool = True,
) -> None:
    """`NameResolver.add` of the default resolver."""
    default_resolver().add(name, value, keepalive_ttl, replace, delete_on_exit)


def get(name: str) -> str:
    """`NameResolver.get` of the default resolver."""
    return default_resolver().get(name)


def wait(name: str, timeout: float | None = None) -> str:
    """`NameResolver.wait` of the default resolver."""
    return default_resolver().wait(name, timeout)


def delete(name: str) -> None:
    """`NameResolver.delete` of the default resolver."""
    default_resolver().delete(name)


def find_subtree(name_root: str) -> list[str]:
    """`NameResolver.find_subtree` of the default resolver."""
    return default_resolver().find_subtree(name_root)


def get_subtree(name_root: str) -> list[str]:
    """`NameResolver.get_subtree` of the default resolver."""
    return default_resolver().get_subtree(name_root)


def clear_subtree(name_root: str) -> None:
    """`NameResolver.clear_subtree` of the default resolver."""
    default_resolver().clear_subtree(name_root)


def watch_names(
    names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float = 1.0
) -> NameWatch:
    """`NameResolver.watch_names` of the default resolver."""
    return default_resolver().watch_names(names, callback, poll_interval_s)
