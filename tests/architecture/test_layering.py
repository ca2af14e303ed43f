"""The layers of the package, read from its imports: a package imports only rows below its own, never sideways."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture.source_tree import (
    PACKAGE,
    ROOT,
    Import,
    Source,
    imports_of,
    is_below,
    package_sources,
)

ROWS = (
    {"errors", "config", "data"},
    {"base", "exit_codes"},
    {"control", "policies", "envs"},
    {"streams", "algorithms"},
    {"launch", "workers"},
    {"composing", "trials"},
    {"views"},
    {"reports"},
    {"runs"},
    {"commands", "site"},
    # Entry points: the modules that stand directly in the package: cli, train, deputy.
    {path.stem for path in (ROOT / PACKAGE).glob("*.py")} - {"__init__", "errors", "exit_codes"},
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
TOP_ROW = len(ROWS) - 1

# The bottom row's own order: errors, then config, then data.
ALLOWED_SIDEWAYS = {("config", "errors"), ("data", "errors"), ("data", "config")}
# Lower rows that a package does without all the same: `launch` knows a worker only as a command line.
FORBIDDEN_BELOW = {
    ("launch", "control"),
    ("launch", "streams"),
    ("launch", "policies"),
    ("launch", "algorithms"),
}

FORBIDDEN_PACKAGES = {
    "torch": {"base", "control", "streams", "config", "data", "envs", "launch"},
    "zmq": {"envs", "policies", "algorithms", "config", "data", "launch"},
}
# None: anything that the package depends on.
ALLOWED_THIRD_PARTY = {"errors": set(), "config": set(), "data": {"numpy"}}


def component(module: str) -> str:
    """Return the layered part that a module belongs to: `hpc_marl.base.names` belongs to `base`."""
    return module.split(".")[1] if "." in module else ""


def layer_violations(imports: Iterable[Import]) -> list[str]:
    """Say which imports between the package's own parts break the rows."""
    found = []
    for one in imports:
        if not is_below(one.target, PACKAGE):
            continue
        source, target = component(one.source), component(one.target)
        if target in ("", "__version__", source):
            continue
        if unknown := [part for part in (source, target) if part and part not in ROW_OF]:
            found.append(f"{one.where}: {unknown[0]} has no row; give it one in {__name__}")
        elif not source:
            found.append(f"{one.where}: `import {PACKAGE}` stays empty, but imports {one.target}")
        elif (source, target) in FORBIDDEN_BELOW:
            found.append(f"{one.where}: {source} must not know {one.target}")
        elif ROW_OF[source] == TOP_ROW or (source, target) in ALLOWED_SIDEWAYS:
            continue
        elif ROW_OF[target] >= ROW_OF[source]:
            found.append(
                f"{one.where}: {source} (row {ROW_OF[source]}) imports {one.target} (row {ROW_OF[target]})"
            )
    return found


def third_party_violations(imports: Iterable[Import]) -> list[str]:
    """Say which imports of other packages the importing part does without."""
    found = []
    for one in imports:
        part, top = component(one.source), one.target.partition(".")[0]
        if top == PACKAGE or top in sys.stdlib_module_names:
            continue
        allowed = ALLOWED_THIRD_PARTY.get(part)
        if part in FORBIDDEN_PACKAGES.get(top, set()) or (allowed is not None and top not in allowed):
            found.append(f"{one.where}: {part} must not import {top}")
    return found


def import_cycle(imports: Iterable[Import], modules: set[str]) -> list[str]:
    """Return the modules of one import cycle in order, or nothing."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for one in imports:
        # `from package import name` means the module `package.name` where there is one, else the package itself.
        target = next((name for name in (one.target, one.target.rpartition(".")[0]) if name in modules), None)
        if target is not None and target != one.source:
            graph[one.source].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def all_imports() -> list[Import]:
    """Return every import of the package."""
    return [one for source in package_sources() for one in imports_of(source)]


def test_packages_import_only_lower_rows() -> None:
    found = layer_violations(all_imports())
    assert not found, "\n".join(found)


def test_packages_keep_to_their_third_parties() -> None:
    found = third_party_violations(all_imports())
    assert not found, "\n".join(found)


def test_there_is_no_import_cycle() -> None:
    found = import_cycle(all_imports(), {source.module for source in package_sources()})
    assert not found, " -> ".join(found)


def test_every_part_of_the_package_has_a_row() -> None:
    parts = {component(source.module) for source in package_sources()} - {""}
    assert parts <= set(ROW_OF), f"no row for {sorted(parts - set(ROW_OF))}"


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("hpc_marl/base/a.py", "import hpc_marl.control.controller", "base (row 1) imports"),
        ("hpc_marl/control/a.py", "from hpc_marl.envs import api", "control (row 2) imports"),
        (
            "hpc_marl/control/a.py",
            "def f():\n    from hpc_marl.workers import actor",
            "control (row 2) imports",
        ),
        (
            "hpc_marl/streams/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hpc_marl.launch.local",
            "a.py:3: streams (row 3) imports",
        ),
        ("hpc_marl/base/a.py", "from ..control import controller", "base (row 1) imports"),
        ("hpc_marl/base/__init__.py", "from ..control import controller", "base (row 1) imports"),
        (
            "hpc_marl/base/a.py",
            "import importlib\nimportlib.import_module('hpc_marl.cli')",
            "base (row 1) imports",
        ),
        ("hpc_marl/launch/a.py", "from hpc_marl.control import controller", "launch must not know"),
        ("hpc_marl/errors.py", "from hpc_marl.config import build", "errors (row 0) imports"),
        ("hpc_marl/config/a.py", "from hpc_marl.data import samples", "config (row 0) imports"),
        ("hpc_marl/__init__.py", "from hpc_marl.base import names", "stays empty"),
        ("hpc_marl/new/a.py", "from hpc_marl.base import names", "new has no row"),
    ],
)
def test_a_planted_layer_violation_is_found(path: str, code: str, message: str) -> None:
    found = layer_violations(imports_of(Source(path, code)))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("hpc_marl/envs/a.py", "import zmq.asyncio"),
        ("hpc_marl/policies/a.py", "def f():\n    from zmq import Context"),
        ("hpc_marl/control/a.py", "import torch.nn as nn"),
        ("hpc_marl/launch/a.py", "__import__('torch')"),
        ("hpc_marl/config/a.py", "import numpy"),
        ("hpc_marl/config/a.py", "import yaml"),
        ("hpc_marl/data/a.py", "import msgspec"),
        ("hpc_marl/errors.py", "import numpy as np"),
    ],
)
def test_a_planted_third_party_violation_is_found(path: str, code: str) -> None:
    assert len(third_party_violations(imports_of(Source(path, code)))) == 1


def test_right_imports_pass() -> None:
    sources = [
        Source(
            "hpc_marl/workers/a.py", "import torch\nfrom hpc_marl.streams import samples\nfrom .b import c"
        ),
        Source(
            "hpc_marl/data/a.py", "import numpy as np\nimport sys\nfrom hpc_marl.config.fields import setting"
        ),
        Source("hpc_marl/train.py", "from hpc_marl import __version__, cli\nimport hpc_marl.launch.local"),
    ]
    imports = [one for source in sources for one in imports_of(source)]
    assert layer_violations(imports) == []
    assert third_party_violations(imports) == []


def test_a_planted_cycle_is_found() -> None:
    sources = [
        Source("hpc_marl/base/a.py", "from hpc_marl.base import b"),
        Source("hpc_marl/base/b.py", "def f():\n    from hpc_marl.base.c import thing"),
        Source(
            "hpc_marl/base/c.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import other",
        ),
        Source("hpc_marl/base/__init__.py", "from hpc_marl.base.c import thing"),
    ]
    modules = {source.module for source in sources}
    imports = [one for source in sources for one in imports_of(source)]
    assert set(import_cycle(imports, modules)) == {"hpc_marl.base.a", "hpc_marl.base.b", "hpc_marl.base.c"}
    assert import_cycle(imports_of(sources[0]), modules) == []
