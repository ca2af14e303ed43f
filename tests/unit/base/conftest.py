from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpc_marl.base.security import Keyring, create_keyring
from hpc_marl.base.sockets import SocketFactory


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return create_keyring(tmp_path_factory.mktemp("run") / "auth")


@pytest.fixture(scope="session")
def other_keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return create_keyring(tmp_path_factory.mktemp("other-run") / "auth")


@pytest.fixture
def sockets(keyring: Keyring) -> Iterator[SocketFactory]:
    with SocketFactory(keyring) as factory:
        yield factory


@pytest.fixture
def other_sockets(other_keyring: Keyring) -> Iterator[SocketFactory]:
    with SocketFactory(other_keyring) as factory:
        yield factory
