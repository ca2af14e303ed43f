"""`hpc-marl status EXP[/TRIAL]` and `hpc-marl list`: where runs stand, from any login shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.errors import ConfigError, NoControllerError
from hpc_marl.trials.reference import find_trials, trials_below
from hpc_marl.trials.trial_files import TrialFacts, trial_facts
from hpc_marl.views.status_text import facts_text, percent_text, snapshot_text, state_counts, sweep_text
from hpc_marl.views.text_table import age_text, optional_number, text_table


def status(arguments: Sequence[str]) -> int:
    """Show where one trial stands, or all trials of an experiment."""
    parser = trial_parser(
        "status",
        "Show where a trial stands: by its controller's word, or by its files where none answers. "
        "Of an experiment with several trials, a table of all, by their files.",
    )
    parser.add_argument("--json", action="store_true", help="print the snapshot as JSON")
    options = parser.parse_args(arguments)
    return run_command(lambda: _status(options))


def list_trials(arguments: Sequence[str]) -> int:
    """List all experiments and their trials, newest first."""
    parser = trial_parser("list", "List all experiments and their trials, newest first.", reference="")
    options = parser.parse_args(arguments)
    return run_command(lambda: _list(options))


def _status(options: argparse.Namespace) -> int:
    directories = find_trials(options.reference, options.root)
    if len(directories) == 1:
        sys.stdout.write(_trial_status(directories[0], as_json=options.json))
        return 0
    facts = _readable(directories)
    sys.stdout.write(_json([_as_json(one) for one in facts]) if options.json else sweep_text(facts))
    return 0


def _trial_status(directory: RunDirectory, *, as_json: bool) -> str:
    from hpc_marl.runs.live_client import live_controller

    try:
        with live_controller(directory) as controller:
            snapshot = controller.status()
    except NoControllerError as error:
        facts = trial_facts(directory)
        return _json(_as_json(facts)) if as_json else facts_text(facts, str(error))
    return _json(snapshot) if as_json else snapshot_text(snapshot)


def _list(options: argparse.Namespace) -> int:
    experiments = trials_below(options.root)
    facts = _readable(directory for trials in experiments for directory in trials)
    header = ["trial", "state", "env_steps", "done", "return", "last news"]
    rows = [
        [
            one.name,
            one.state,
            f"{one.env_steps:,}",
            percent_text(one),
            optional_number(one.return_mean),
            age_text(one.age_s),
        ]
        for one in facts
    ]
    table = text_table(header, rows, right=["env_steps", "done", "return", "last news"])
    counts = f"{len(experiments)} experiment{'s' * (len(experiments) != 1)}, {state_counts(facts)}"
    sys.stdout.write("\n".join([*table, counts if facts else f"no runs below {options.root}"]) + "\n")
    return 0


def _readable(directories: Iterable[RunDirectory]) -> list[TrialFacts]:
    """Return the facts of trials; one that cannot be read is said and passed over."""
    facts = []
    for directory in directories:
        try:
            facts.append(trial_facts(directory))
        except ConfigError as error:
            sys.stderr.write(f"warning: {error}\n")
    return facts


def _as_json(facts: TrialFacts) -> dict[str, Any]:
    """Return what the files say in the shape of a snapshot, as far as it goes."""
    return {
        "source": "files",
        "experiment_name": facts.directory.experiment_name,
        "trial_name": facts.directory.trial_name,
        "state": facts.state,
        "phase": facts.phase,
        "verdict": str(facts.verdict or ""),
        "progress": {
            "env_steps": facts.env_steps,
            "total_env_steps": facts.total_env_steps,
            "env_steps_per_s": facts.env_steps_per_s,
            "return_mean": facts.return_mean,
            "policy_lag": facts.policy_lag,
            "policy_version": facts.policy_version,
            "elapsed_s": facts.train_time_s,
        },
        "evaluation": facts.evaluation.return_mean if facts.evaluation else None,
        "jobs": [{"job_id": job.job_id, "role": job.role, "slots": job.slots} for job in facts.jobs],
        "age_s": facts.age_s,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
