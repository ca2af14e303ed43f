"""Both backends of the name service keep one contract."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_marl.base import name_resolve, names
from hpc_marl.base.name_resolve import NameResolver
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.name_resolve_memory import MemoryNameResolver, MemoryNameStore
from hpc_marl.errors import NameResolveError
from tests.unit.base.name_resolve_contract import CONTRACTS, Contract, Places


class HerePlaces:
    """Two places in this process: one directory, or one store, with a resolver of its own for every user."""

    ttl_s = 0.3

    def __init__(self, backend: str, directory: Path) -> None:
        self.opened: list[NameResolver] = []
        self._backend = backend
        self._directory = directory
        self._store = MemoryNameStore()

    def open(self, place: int) -> NameResolver:
        del place  # all the same here
        if self._backend == "file":
            self.opened.append(FileNameResolver(self._directory))
        else:
            self.opened.append(MemoryNameResolver(self._store))
        return self.opened[-1]


@pytest.fixture(params=["memory", "file"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    places = HerePlaces(request.param, tmp_path / "names")
    yield places
    for resolver in places.opened:
        resolver.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("name-")] == []


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(contract: Contract, places: Places) -> None:
    contract(places)


def test_module_functions_use_the_configured_resolver() -> None:
    with pytest.raises(NameResolveError, match="configure"):
        name_resolve.get("a")
    vanished: list[str] = []
    gone = threading.Event()
    with MemoryNameResolver() as resolver:
        name_resolve.configure(resolver)
        try:
            name_resolve.add("a/b", "1")
            name_resolve.add("a/c", "2", replace=True)
            assert (name_resolve.get("a/b"), name_resolve.wait("a/c", 1)) == ("1", "2")
            assert (name_resolve.find_subtree("a"), name_resolve.get_subtree("a")) == (
                ["a/b", "a/c"],
                ["1", "2"],
            )
            name_resolve.watch_names(["a/b"], lambda name: (vanished.append(name), gone.set()), 0.01)
            name_resolve.delete("a/b")
            assert gone.wait(30) and vanished == ["a/b"]
            name_resolve.clear_subtree("a")
            assert resolver.find_subtree("a") == []
        finally:
            name_resolve.configure(None)


def test_keys_of_different_trials_never_meet() -> None:
    spelled = [
        spell("exp", trial, "trainer/0")
        for trial in ("t", "t2")
        for spell in (names.worker, names.sample_stream, names.parameter_stream, names.inference_stream)
    ]
    spelled += [spell("exp", "t") for spell in (names.env_spec, names.controller)]
    assert len(set(spelled)) == len(spelled)
    assert names.worker("exp", "t", "trainer/0").startswith(names.worker_root("exp", "t") + "/")
    for experiment_name, trial_name in (("a/b", "c"), ("a", "b/c"), ("", "t"), ("e", "")):
        with pytest.raises(NameResolveError, match="without '/'"):
            names.trial(experiment_name, trial_name)
