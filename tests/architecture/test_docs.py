"""What README.md and docs/ name exists: paths, modules, commands, make targets, and every training command composes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from hpc_marl.cli import SUBCOMMANDS
from hpc_marl.composing.compose import compose_experiment
from hpc_marl.errors import ConfigError
from tests.architecture.source_tree import PACKAGE, ROOT, repository_files

FIRST_COMMAND_BY_LINE = 15
SHELLS = {"bash", "sh", "shell", "console"}
# What stands for something else: EXP/TRIAL, <site>, $DIR, a*b, {a,b}, ...
PLACEHOLDER = re.compile(r"[<>$*{}?…|=\s]|\.\.\.|\b[A-Z]{2,}\b")
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
MODULE_NAME = re.compile(rf"\b{PACKAGE}(?:\.\w+)+")


@dataclass(frozen=True)
class Document:
    """One Markdown file: where it is, relative to the repository, and its text."""

    path: str
    text: str

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return FENCE.sub("", self.text)

    def fences(self) -> Iterator[tuple[int, str, str]]:
        """Yield the line, the language and the content of every fenced block."""
        for match in FENCE.finditer(self.text):
            yield self.text.count("\n", 0, match.start(3)) + 1, match[2], match[3]

    def commands(self) -> list[str]:
        """Return the shell commands: lines of shell blocks, continued lines joined, without prompts, and `spans`."""
        blocks = [content for _, language, content in self.fences() if language in SHELLS]
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        spans = [span for span in CODE_SPAN.findall(self.prose) if re.match(r"(make|hpc-marl) ", span)]
        return [line.strip().removeprefix("$ ") for line in lines if line.strip()] + spans


@cache
def documents() -> tuple[Document, ...]:
    """Return all Markdown files of the repository."""
    paths = [path for path in repository_files() if path.endswith(".md")]
    return tuple(Document(path, (ROOT / path).read_text("utf-8")) for path in paths)


def missing_paths(document: Document, root: Path = ROOT) -> list[str]:
    """Return the links and code spans that name a file of the repository that is not there."""
    here = (root / document.path).parent
    found = [link for link in LINK.findall(document.text) if not _exists_as_link(link, here)]
    for span in CODE_SPAN.findall(document.prose):
        path = re.sub(r":\d+$", "", span).rstrip("/")
        if PLACEHOLDER.search(span) or not _looks_like_path(path, root):
            continue
        if not any((base / path).exists() for base in (root, root / PACKAGE, here)):
            found.append(span)
    return found


def _exists_as_link(link: str, here: Path) -> bool:
    target = link.partition("#")[0]
    return not target or re.match(r"\w+:", target) is not None or (here / target).exists()


def _looks_like_path(text: str, root: Path) -> bool:
    """Whether `text` claims to be a file of ours: it begins with one of our directories or ends as our files do."""
    if text.startswith(("/", "~", "-", ".venv", "runs/", "outputs/")) or "://" in text:
        return False
    if "/" in text and (root / text.partition("/")[0]).is_dir():
        return True
    return re.fullmatch(r"[\w./-]+\.(py|md|ya?ml|toml|sh|sbatch)", text) is not None and "/" in text


def missing_modules(document: Document, root: Path = ROOT) -> list[str]:
    """Return the dotted names below the package that are neither a module nor a name that a module spells."""
    return [name for name in MODULE_NAME.findall(document.text) if not _module_has(name, root)]


def _module_has(name: str, root: Path) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            rest = parts[length : length + 1]
            return not rest or re.search(rf"\b{rest[0]}\b", file.read_text("utf-8")) is not None
    return False


def wrong_commands(document: Document, subcommands: set[str], targets: set[str]) -> list[str]:
    """Return the commands whose `hpc-marl` subcommand or `make` target does not exist."""
    found = []
    for command in document.commands():
        for word in re.findall(r"(?:^|[\s/;&|])hpc-marl +([a-z][\w-]*)", command):
            if word not in subcommands:
                found.append(command)
        for word in re.findall(r"(?:^|[;&|]\s*)make +([a-z][\w-]*)", command):
            if word not in targets:
                found.append(command)
    return found


def training_overrides(document: Document) -> Iterator[list[str]]:
    """Yield the config overrides of every training command that leaves nothing for the reader to fill in."""
    for command in document.commands():
        words = shlex.split(command, comments=True)
        if words[:2] == ["make", "train"]:
            given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
            words = shlex.split(given[0]) if given else []
        elif words[:2] == ["hpc-marl", "train"]:
            words = words[2:]
        else:
            continue
        if not any(word.startswith("-") or re.search(r"[<>$]|\.\.\.|\b[A-Z]{2,}\b", word) for word in words):
            # The reader's own site; its profile has the settings of any other.
            yield [word.replace("cluster=mysite", "cluster=lab") for word in words]


def first_command_line(document: Document) -> int:
    """Return the line of the first command in a shell block; a large number where there is none."""
    return min((line for line, language, content in document.fences() if language in SHELLS), default=10**6)


def make_targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def readme() -> Document:
    """Return the project's README."""
    return next(document for document in documents() if document.path == "README.md")


def test_named_paths_exist() -> None:
    found = [f"{document.path}: {name}" for document in documents() for name in missing_paths(document)]
    assert not found, "\n".join(found)


def test_named_modules_exist() -> None:
    found = [f"{document.path}: {name}" for document in documents() for name in missing_modules(document)]
    assert not found, "\n".join(found)


def test_named_commands_exist() -> None:
    targets = make_targets()
    found = [
        f"{one.path}: {text}"
        for one in documents()
        for text in wrong_commands(one, set(SUBCOMMANDS), targets)
    ]
    assert not found, "\n".join(found)


def test_training_commands_compose() -> None:
    found = []
    for document in documents():
        for overrides in training_overrides(document):
            try:
                compose_experiment(overrides, sweep=True)
            except ConfigError as error:
                found.append(f"{document.path}: hpc-marl train {shlex.join(overrides)}: {error}")
    assert not found, "\n".join(found)


def test_first_command_of_the_readme_stands_early() -> None:
    assert first_command_line(readme()) <= FIRST_COMMAND_BY_LINE


def test_first_block_of_the_readme_is_the_two_commands() -> None:
    blocks = [content for _, language, content in readme().fences() if language in SHELLS]
    commands = [line.partition("#")[0].strip() for line in "".join(blocks[:1]).splitlines()]
    assert [command for command in commands if command.startswith("make")] == ["make train", "make test"]


def test_planted_missing_paths_are_found() -> None:
    text = (
        "See `tests/no_such.py`, `control/no_such.py`, `hpc_marl/gone/` and [this](docs/no_such.md#top).\n"
        "Right: `Makefile`, `hpc_marl/errors.py`, `config/fields.py:12`, `conf/`, [here](README.md), [web](https://x.y),\n"
        "`conf/cluster/<site>.yaml`, `runs/EXP/TRIAL`, `a/b`, `conf/*.yaml`, [below](#below), `/dev/shm`.\n"
    )
    expected = ["docs/no_such.md#top", "tests/no_such.py", "control/no_such.py", "hpc_marl/gone/"]
    assert missing_paths(Document("README.md", text)) == expected


def test_planted_missing_modules_are_found() -> None:
    text = "`hpc_marl.errors`, `hpc_marl.errors.ConfigError`, `hpc_marl.errors.NoSuch`, `python -m hpc_marl.gone.away`"
    assert missing_modules(Document("README.md", text)) == ["hpc_marl.errors.NoSuch", "hpc_marl.gone.away"]


def test_planted_wrong_commands_are_found() -> None:
    text = (
        "Use `hpc-marl fly now` or `make coffee`.\n"
        "```bash\nmake train  # or\n$ hpc-marl train x=1\n.venv/bin/hpc-marl dance\ncd a && make tea\n```\n"
    )
    found = wrong_commands(Document("README.md", text), {"train"}, {"train"})
    assert found == [".venv/bin/hpc-marl dance", "cd a && make tea", "hpc-marl fly now", "make coffee"]


def test_training_overrides_are_read() -> None:
    text = (
        "`hpc-marl train seed=7`\n"
        "```bash\nhpc-marl train seed=1 \\\n    mode=async  # twice\nmake train ARGS='env=x seed=2'\nmake train\n"
        "hpc-marl train cluster=<site>\nhpc-marl train seed=N1 root=$HOME\nhpc-marl train --help\n```\n"
    )
    found = list(training_overrides(Document("README.md", text)))
    assert found == [["seed=1", "mode=async"], ["env=x", "seed=2"], [], ["seed=7"]]


def test_a_planted_wrong_override_does_not_compose() -> None:
    (overrides,) = training_overrides(Document("README.md", "`hpc-marl train no_such_setting=1`"))
    with pytest.raises(ConfigError, match="no_such_setting"):
        compose_experiment(overrides, sweep=True)


def test_the_first_command_is_found() -> None:
    text = "# Title\n\n```python\nx = 1\n```\n\n```bash\nmake train\n```\n"
    assert first_command_line(Document("README.md", text)) == 8
    assert first_command_line(Document("README.md", "# Title\n")) > FIRST_COMMAND_BY_LINE
