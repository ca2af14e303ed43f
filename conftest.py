"""Settings that every test and every doctest shares: a key directory of their own, never the user's."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one key directory for the whole session, so that the key file is made once."""
    return tmp_path_factory.mktemp("keys") / "rpc"


@pytest.fixture(autouse=True)
def key_directory(monkeypatch: pytest.MonkeyPatch, shared_key_directory: Path) -> Path:
    """Point HPC_MARL_KEY_DIR at the session's key directory, also for the processes a test starts."""
    monkeypatch.setenv("HPC_MARL_KEY_DIR", str(shared_key_directory))
    return shared_key_directory
