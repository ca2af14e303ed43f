"""The repository as text and syntax trees, which the architecture tests read; none of the code is run."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "hpc_marl"

# Calls that import the module that their first argument names.
_IMPORTING_CALLS = {"import_module", "__import__", "resolve_name"}


@dataclass(frozen=True)
class Source:
    """One Python file.

    Attributes:
        path: relative to the repository, with forward slashes.
        text: its content.
    """

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return _parse(self)

    @property
    def module(self) -> str:
        """Dotted module name: `hpc_marl/base/__init__.py` is `hpc_marl.base`."""
        parts = Path(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_package(self) -> bool:
        """Whether the file is a package's `__init__.py`."""
        return self.path.endswith("__init__.py")

    def at(self, node: ast.AST) -> str:
        """Where `node` stands, as editors and terminals link it."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class Import:
    """One import statement's one target, wherever in the file it stands."""

    source: str
    where: str
    target: str


@cache
def _parse(source: Source) -> ast.Module:
    return ast.parse(source.text, source.path)


@cache
def python_sources(*directories: str) -> tuple[Source, ...]:
    """Return the Python files below some directories of the repository."""
    files = sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))
    return tuple(Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in files)


def package_sources() -> tuple[Source, ...]:
    """Return the files of the package itself."""
    return python_sources(PACKAGE)


def repository_files() -> list[str]:
    """Return the paths that are, or could be, committed; everything but `.git` where git cannot say."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split(
            "\0"
        )
    except (OSError, subprocess.CalledProcessError):
        listed = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if ".git" not in path.parts]
    return sorted(path for path in listed if (ROOT / path).is_file())


def imports_of(source: Source) -> Iterator[Import]:
    """Yield all imports: at the top, in functions, under TYPE_CHECKING, and by a literal name given to importlib."""
    for node in ast.walk(source.tree):
        for target in _targets(source, node):
            yield Import(source.module, source.at(node), target)


def _targets(source: Source, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = source.module.split(".")
            kept = len(package) - node.level + source.is_package
            base = ".".join([*package[:kept], *filter(None, [node.module])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _IMPORTING_CALLS and isinstance(node.args[0].value, str):
            return [node.args[0].value.replace(":", ".")]
    return []


def aliases_of(source: Source) -> dict[str, str]:
    """Return what each imported name stands for: `import numpy as np` gives `{"np": "numpy"}`."""
    found: dict[str, str] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def dotted_name(node: ast.AST, aliases: dict[str, str]) -> str:
    """Return `torch.load` for the expression `th.load` under `import torch as th`; "" for what is no plain name."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value, aliases)
        return f"{base}.{node.attr}" if base else ""
    return ""


def is_below(name: str, root: str) -> bool:
    """Whether the dotted `name` is `root` or something in it."""
    return name == root or name.startswith(f"{root}.")
