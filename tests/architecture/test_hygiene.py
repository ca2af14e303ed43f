"""What no committed file holds: paths of one developer's machine, package mirrors, merge conflicts, big files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT, repository_files

MAX_FILE_BYTES = 500_000

FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(root|work|home/\w+|Users/\w+)/"),
    "a ticket's number; say what it is about": re.compile(r"\b[Ii]ssue #?\d+\b"),
    "a package mirror": re.compile(r"--(extra-)?index-url[ =]\S*//|--find-links\b"),
    "a merge conflict": re.compile(r"^(<<<<<<<|>>>>>>>) ", re.M),
}


def hygiene_violations(path: str, text: str) -> Iterator[str]:
    """Yield what a file must not hold, with its line."""
    for what, pattern in FORBIDDEN.items():
        for match in pattern.finditer(text):
            yield f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match[0]}"


def test_committed_files_hold_no_word_of_one_machine() -> None:
    found = []
    for path in repository_files():
        # This file spells what it looks for.
        if (ROOT / path).resolve() == Path(__file__).resolve():
            continue
        text = (ROOT / path).read_bytes().decode("utf-8", errors="replace")
        found += list(hygiene_violations(path, text))
    assert not found, "\n".join(found)


def test_committed_files_are_small() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in repository_files()}
    found = [f"{path}: {size} bytes" for path, size in sizes.items() if size > MAX_FILE_BYTES]
    assert not found, "\n".join(found)


def test_the_files_are_seen() -> None:
    files = repository_files()
    assert {"pyproject.toml", "Makefile", "hpc_marl/errors.py"} <= set(files)
    assert not [path for path in files if path.startswith((".git/", ".venv/"))]


@pytest.mark.parametrize(
    "text",
    [
        "PYTHON=/root/bin/python",
        "see /home/alice/code/x.py",
        "pip install --find-links wheels torch",
        "pip install --index-url https://mirror.example/simple x",
        "fixes issue 7",
        "<<<<<<< HEAD\nx = 1",
    ],
)
def test_a_planted_word_is_found(text: str) -> None:
    assert len(list(hygiene_violations("a.py", f"x = 1\n{text}\n"))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "hpc_marl/workers/actor.py",
        "runs on a shared filesystem; $HOME/runs/exp",
        "pip install --extra-index-url URL torch",
        "issues in general",
        "x << 7",
    ],
)
def test_right_words_pass(text: str) -> None:
    assert list(hygiene_violations("a.py", text)) == []
