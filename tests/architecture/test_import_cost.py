"""What starts quickly stays quick: the login node, the controller and the actors never load torch.

One fresh process does all steps in turn and reports, after each, which heavy packages are loaded and who asked for
them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT

# Reports the first import of each heavy package with the lines of this repository that led to it.
PROBE = """
import contextlib, importlib, io, json, sys, traceback

heavy, steps = set(sys.argv[1].split(",")), json.loads(sys.argv[2])
asked_by = {}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in heavy and name not in asked_by:
            frames = traceback.extract_stack()[:-1]
            asked_by[name] = [f"{f.filename}:{f.lineno}" for f in frames if "importlib" not in f.filename]
        return None

sys.meta_path.insert(0, Finder)
loaded = {}
for step in steps:
    try:
        if isinstance(step, str):
            importlib.import_module(step)
        else:
            from hpc_marl.cli import main
            with contextlib.redirect_stdout(io.StringIO()) as output:
                code = main(step)
            assert code == 0 and output.getvalue(), (step, code)
        failed = {}
    except Exception:
        failed = {"failed": traceback.format_exc().splitlines()}
    loaded[json.dumps(step)] = {name: asked_by.get(name, []) for name in heavy if name in sys.modules} | failed
print(json.dumps(loaded))
"""

HEAVY = ("torch", "zmq", "hydra", "numpy", "matplotlib")
NOTHING_HEAVY: list[str | list[str]] = [
    "hpc_marl",
    "hpc_marl.errors",
    "hpc_marl.cli",
    ["--help"],
    ["--version"],
]
NO_TORCH: list[str | list[str]] = [
    "hpc_marl.control.worker_control",
    "hpc_marl.control.controller",
    "hpc_marl.launch",
    "hpc_marl.runs.session",
    "hpc_marl.policies.numpy_actor",
    "hpc_marl.envs",
    "hpc_marl.workers.__main__",
    "hpc_marl.workers.actor",
    ["train", "--help"],
    ["train", "--cfg", "job"],
]


def heavy_imports(
    steps: list[str | list[str]], heavy: tuple[str, ...], directory: Path = ROOT
) -> dict[str, dict[str, list[str]]]:
    """Run the steps (a module to import, or arguments of `hpc-marl`) in one new process.

    Returns:
        For each step, as JSON text, the heavy packages loaded so far and the files and lines that led to the import;
        under the key "failed", the traceback of a step that did not work.
    """
    command = [sys.executable, "-c", PROBE, ",".join(heavy), json.dumps(steps)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return result


def show(loaded: dict[str, list[str]]) -> str:
    """Return what was found as text; "" for nothing."""
    return "\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in loaded.items())


@cache
def measured() -> dict[str, dict[str, list[str]]]:
    """Do all the steps, once."""
    return heavy_imports([*NOTHING_HEAVY, *NO_TORCH], HEAVY)


@pytest.mark.parametrize("step", NOTHING_HEAVY, ids=str)
def test_loads_nothing_heavy(step: str | list[str]) -> None:
    found = show(measured()[json.dumps(step)])
    assert not found, found


@pytest.mark.parametrize("step", NO_TORCH, ids=str)
def test_loads_no_torch(step: str | list[str]) -> None:
    loaded = measured()[json.dumps(step)]
    found = show({name: loaded[name] for name in ("torch", "failed") if name in loaded})
    assert not found, found


def test_a_planted_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "heavy_thing.py").write_text("")
    (tmp_path / "innocent.py").write_text("def late():\n    import heavy_thing\nlate()\n")
    (tmp_path / "light.py").write_text("import json\n")
    loaded = heavy_imports(["light", "innocent", "no_such_module"], ("heavy_thing",), tmp_path)
    assert loaded['"light"'] == {}
    assert any(line.endswith("innocent.py:2") for line in loaded['"innocent"']["heavy_thing"])
    assert "ModuleNotFoundError" in show(loaded['"no_such_module"'])
