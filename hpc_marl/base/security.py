"""Keys of a run, and signatures made with them.

A *keyring* is one private directory with one file, `run.key`. Whoever can read that file may talk to the
processes that use it; nobody else can. A run has its own keyring (`run-<uuid>/auth/`); a bare
`RpcServer`/`RpcClient` pair uses `default_keyring()`. Keys never travel in arguments, environment variables,
logs or job scripts: only the directory's path does.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from hpc_marl.base.durable_files import write_exclusively
from hpc_marl.base.permissions import check_private_directory, check_private_file, make_private_directory
from hpc_marl.errors import SecurityError

__all__ = [
    "KEY_DIR_VARIABLE",
    "KEY_FILE_NAME",
    "Keyring",
    "check_private_directory",
    "create_keyring",
    "default_keyring",
    "load_keyring",
    "make_private_directory",
    "sign",
    "verify",
]

KEY_FILE_NAME = "run.key"
KEY_DIR_VARIABLE = "HPC_MARL_KEY_DIR"
_KEY_FILE_VERSION = 1
_MAX_KEY_FILE_BYTES = 4096
_MAC_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Keyring:
    """The keys in one directory. Public and secret keys are CURVE keys in Z85 (40 ASCII bytes).

    Attributes:
        directory: where the key file lies; the only thing about keys that may be shown or passed on.
        client_public: the one key that servers let in.
        client_secret: proves to a server that the client holds the keyring.
        server_public: identity of bare `RpcServer`s; workers make a fresh pair per incarnation instead.
        server_secret: the secret half of it.
        mac_key: signs name entries.
    """

    directory: Path
    client_public: bytes
    client_secret: bytes = field(repr=False)
    server_public: bytes
    server_secret: bytes = field(repr=False)
    mac_key: bytes = field(repr=False)


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `run.key` holds, as JSON; public keys follow from the secret ones."""

    version: int
    client_secret: str
    server_secret: str
    seed: str


def create_keyring(directory: str | Path) -> Keyring:
    """Make new keys in `directory` (created with mode 0700) and return them.

    The file appears complete or not at all, also to concurrent readers on a network file system.

    Raises:
        SecurityError: `directory` is not private, or has a key file already.
    """
    directory = make_private_directory(directory)
    keys = _KeyFile(
        version=_KEY_FILE_VERSION,
        client_secret=zmq.curve_keypair()[1].decode(),
        server_secret=zmq.curve_keypair()[1].decode(),
        seed=secrets.token_hex(32),
    )
    if not write_exclusively(directory / KEY_FILE_NAME, msgspec.json.encode(keys) + b"\n"):
        raise SecurityError(
            f"{directory / KEY_FILE_NAME} is there already; load it, or choose another directory"
        )
    return load_keyring(directory)


def load_keyring(directory: str | Path) -> Keyring:
    """Read the keys in `directory`.

    Raises:
        SecurityError: they are missing, broken, or others could have read or replaced them; the message
            ends with the command that puts it right.
    """
    directory = Path(os.path.abspath(directory))
    check_private_directory(directory)
    path = directory / KEY_FILE_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SecurityError(
            f"there is no key file {path}; is this the directory of a run that has ended?"
        ) from None
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
        raise SecurityError(f"{path} {reason}; expected a regular file of mode 0600") from error
    with os.fdopen(descriptor, "rb") as file:
        check_private_file(descriptor, path)
        content = file.read(_MAX_KEY_FILE_BYTES)
    try:
        keys = msgspec.json.decode(content, type=_KeyFile)
        if keys.version != _KEY_FILE_VERSION:
            raise ValueError(f"version {keys.version}, expected {_KEY_FILE_VERSION}")
        seed = bytes.fromhex(keys.seed)
        client_secret, server_secret = keys.client_secret.encode(), keys.server_secret.encode()
        client_public, server_public = zmq.curve_public(client_secret), zmq.curve_public(server_secret)
    except (msgspec.MsgspecError, ValueError, zmq.ZMQError) as error:
        raise SecurityError(
            f"{path} is not a key file ({error}); remove it to have a new one made"
        ) from error
    # Derived, so that a signature says nothing about the seed and another use gets another key.
    mac_key = hmac.digest(seed, b"hpc_marl name entries", "sha256")
    return Keyring(directory, client_public, client_secret, server_public, server_secret, mac_key)


def default_keyring() -> Keyring:
    """Return this user's keyring for bare `RpcServer`/`RpcClient` pairs; create it on first use.

    It lies in `$HPC_MARL_KEY_DIR`, or else in `~/.config/hpc_marl/rpc/`. Processes of one user on machines
    that share the home directory share it without further ado. For another machine copy the directory,
    keeping its modes (`rsync -a ~/.config/hpc_marl/rpc other:.config/hpc_marl/`).

    Raises:
        SecurityError: others could read or replace the keys.
    """
    directory = Path(os.environ.get(KEY_DIR_VARIABLE) or "~/.config/hpc_marl/rpc").expanduser()
    if not os.path.lexists(directory / KEY_FILE_NAME):
        try:
            return create_keyring(directory)
        except SecurityError:
            if not os.path.lexists(directory / KEY_FILE_NAME):
                raise
            # Another process made it in the meantime: both use the one that was first.
    return load_keyring(directory)


def sign(keyring: Keyring, text: str) -> str:
    """Return `text` with its HMAC-SHA256 as one token of URL-safe base64."""
    content = text.encode()
    mac = hmac.digest(keyring.mac_key, content, "sha256")
    return base64.urlsafe_b64encode(mac + content).decode("ascii")


def verify(keyring: Keyring, signed: str) -> str:
    """Return the text of a token made by `sign` with the same keyring.

    Raises:
        SecurityError: it was not, or was changed since.
    """
    try:
        raw = base64.b64decode(signed.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise SecurityError(
            f"a signature is not base64 ({error}); expected one made with {keyring.directory}"
        ) from error
    mac, content = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(mac, hmac.digest(keyring.mac_key, content, "sha256")):
        raise SecurityError(
            f"a signature was not made with the keys in {keyring.directory}: forged, or of another run"
        )
    return content.decode()
