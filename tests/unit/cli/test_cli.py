"""`hpc-marl`: its subcommands, its help, and what it must not import."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_marl.cli import SUBCOMMANDS, main
from hpc_marl.composing.compose import compose_experiment


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_subcommand(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(
        f"{name} {command.usage}" in text and command.summary in text for name, command in SUBCOMMANDS.items()
    )


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_can_be_called(name: str):
    assert callable(pkgutil.resolve_name(SUBCOMMANDS[name].target))


def test_an_unknown_command_is_answered_with_the_known(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 2
    text = capsys.readouterr().err
    assert "did you mean 'train'?" in text and all(name in text for name in SUBCOMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hpc-marl 0.")


LISTS_IMPORTS = """
import sys
from hpc_marl.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "zmq", "gymnasium", "matplotlib", "rich"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]])
def test_quick_commands_import_nothing_heavy(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-c", LISTS_IMPORTS, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_python_m_train_is_the_same_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "hpc_marl.train", "--cfg", "job", "seed=7"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "\nseed: 7\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_check_env_says_what_the_environment_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["check-env", "env=cartpole"]) == 0
    assert "cartpole keeps the contract: 1 agent, observation_size 4" in capsys.readouterr().out
    (tmp_path / "broken_env.py").write_text("def make():\n    return object()\n")
    assert main(["check-env", "env=cartpole", "env.make={_target_: broken_env.make}", "~env.make.id"]) == 1
    assert "error: broken_env.make made" in capsys.readouterr().err
    assert str(tmp_path) not in sys.path
    sys.modules.pop("broken_env", None)


def test_plot_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plot", str(tmp_path), "--root", str(tmp_path)]) == 2
    assert "there are: none" in capsys.readouterr().err
    (tmp_path / "metrics").mkdir()
    assert main(["plot", str(tmp_path)]) == 2
    assert "no metrics/metrics.jsonl" in capsys.readouterr().err
    assert compose_experiment().root == "runs"
