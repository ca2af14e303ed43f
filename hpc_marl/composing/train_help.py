"""The text of `hpc-marl train --help`, made from conf/ and the settings' own descriptions."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose

from hpc_marl.composing.compose import experiment_from, hydra_search_path, translated_errors
from hpc_marl.composing.conf_files import PRIMARY_CONFIG
from hpc_marl.composing.overrides import check_overrides
from hpc_marl.config import ExperimentConfig
from hpc_marl.config.build import unknown_key_message
from hpc_marl.config.fields import constraint_of
from hpc_marl.errors import ConfigError

MOST_USED = (
    "seed",
    "total_env_steps",
    "mode",
    "inference",
    "resume",
    "trial_name",
    "root",
    "actors.count",
    "actors.num_envs",
    "algorithm.learning_rate",
    "algorithm.rollout_length",
    "algorithm.entropy_coef",
    "policy.hidden_sizes",
    "trainer.device",
    "controller",
    "evaluation.episodes",
    "profile",
)

_FLAGS = {
    "--cfg job": "print every setting of this run and stop",
    "--help BRANCH": "explain the settings of one branch, such as algorithm or actors; also: all",
    "--config-dir DIR": "add YAML files of your own, laid out like conf/",
    "--multirun, -m": "one run for every combination of comma-separated values",
    "--dry-run": "on Slurm: show the plan and every sbatch script, checked, and submit nothing",
    "--prepare": "inside a job script of your own: make its run directory (slurm/hetjob.sbatch)",
    "--info defaults": "which files this run is composed of",
    "--hydra-help": "Hydra's own flags",
}

_EXAMPLES = {
    "hpc-marl train": "the main job",
    "hpc-marl train resume=true": "go on where it stopped",
    "hpc-marl train experiment=cartpole_ppo seed=2": "another experiment, another seed",
    "hpc-marl train algorithm=ippo policy=gru": "other parts",
    "hpc-marl train mode=async inference=remote": "actors that do not wait; batched inference",
    "hpc-marl train profile=true": "and say where the time went",
    "hpc-marl train --multirun seed=1,2,3": "a sweep, one run after another",
    "hpc-marl train --config-dir my_conf env=mine": "my_conf/env/mine.yaml",
    "hpc-marl train cluster=SITE controller=job": "on Slurm: submit and return; see also hpc-marl cluster init",
}


def help_text(arguments: Sequence[str] = (), config_dir: str | None = None) -> str:
    """Return the help of `hpc-marl train`.

    Args:
        arguments: overrides, whose effect the text shows, and at most one branch to explain instead.
        config_dir: the user's own directory of YAML files.

    Raises:
        ConfigError: an override or branch is wrong.
    """
    overrides = [argument for argument in arguments if "=" in argument]
    branches = [argument for argument in arguments if "=" not in argument]
    with hydra_search_path(config_dir) as loader, translated_errors():
        if mistakes := check_overrides(overrides, loader):
            raise ConfigError("\n".join(mistakes))
        composed = compose(PRIMARY_CONFIG, overrides=overrides, return_hydra_config=True)
        choices = composed.hydra.runtime.choices
        order = ["experiment", *(field.name for field in dataclasses.fields(ExperimentConfig))]
        chosen = {name: choices[name] for name in order if name in choices}
        options = {name: loader.get_group_options(name) for name in chosen}
        experiment = experiment_from(compose(PRIMARY_CONFIG, overrides=overrides))
    if branches:
        return _branch_help(experiment, branches[0])
    return _overview(experiment, options, chosen)


def _overview(
    experiment: ExperimentConfig, options: Mapping[str, Sequence[str]], chosen: Mapping[str, str]
) -> str:
    described = {path: text for path, _, text in _settings(experiment)}
    group_docs = {field.name: constraint_of(field.metadata).doc for field in dataclasses.fields(experiment)}
    group_docs["experiment"] = "a whole run: choices of the groups below and their settings"
    groups = {
        f"{name}=": " | ".join(f"{option}*" if option == chosen[name] else option for option in options[name])
        + f"  ({group_docs.get(name, '')})"
        for name in chosen
    }
    settings = {
        _shown(path, value): described[path] for path, value, _ in _settings(experiment) if path in MOST_USED
    }
    return "\n".join(
        [
            "usage: hpc-marl train [GROUP=FILE ...] [SETTING=VALUE ...] [FLAG ...]",
            "",
            *_paragraph(
                "Trains a multi-agent policy with actor, policy and trainer processes and a controller, then "
                f"evaluates it over {experiment.evaluation.episodes} episodes. Every run has its directory "
                f"{experiment.root}/EXPERIMENT/TRIAL with checkpoints, metrics, logs and the learning curve."
            ),
            "",
            "Groups (conf/GROUP/FILE.yaml; * is chosen here):",
            *_table(groups),
            "",
            "Settings used most, as they are here:",
            *_table(settings),
            "",
            "Flags:",
            *_table(_FLAGS),
            "",
            "Examples:",
            *_table(_EXAMPLES),
            "",
        ]
    )


def _branch_help(experiment: ExperimentConfig, branch: str) -> str:
    rows = list(_settings(experiment))
    if branch != "all":
        names = sorted({path.split(".")[0] for path, _, _ in rows})
        if branch not in names:
            raise ConfigError(unknown_key_message(branch, branch, ["all", *names]))
        rows = [row for row in rows if row[0].split(".")[0] == branch]
    return "\n".join([*_table({_shown(path, value): text for path, value, text in rows}), ""])


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted path, value, description) of every setting below a config."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{prefix}{field.name}.")
            continue
        constraint = constraint_of(field.metadata)
        has_range = constraint.low is not None or constraint.high is not None
        choices = (
            "|".join(map(str, typing.get_args(hints[field.name]))) if _is_choice(hints[field.name]) else ""
        )
        limits = [
            text for text in (choices, constraint.unit, constraint.range_text() if has_range else "") if text
        ]
        yield f"{prefix}{field.name}", value, constraint.doc + (f" [{', '.join(limits)}]" if limits else "")


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _shown(path: str, value: Any) -> str:
    """Write a setting the way it is typed."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, (list, tuple)):
        text = f"[{','.join(map(str, value))}]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    else:
        text = str(value)
    return f"{path}={text}"


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _width())


def _table(rows: Mapping[str, str]) -> list[str]:
    """Return two aligned columns; the right one is wrapped, and begins below a left one that is long."""
    left_width = min(max(len(left) for left in rows), 48) + 4
    lines = []
    for left, right in rows.items():
        wrapped = textwrap.wrap(right, _width() - left_width) or [""]
        if len(left) + 4 > left_width:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left}".ljust(left_width) + wrapped.pop(0))
        lines.extend(" " * left_width + part for part in wrapped)
    return [line.rstrip() for line in lines]
