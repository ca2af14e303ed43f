"""`hpc-marl train`, also `python -m hpc_marl.train`: compose the experiment, check it, run it.

    argv --compose_experiment--> mistakes answered here, exit code 2, no process started
         --run_experiment------> objective
         --hydra.main----------> with --multirun: one job per combination --run_experiment--> objective

Exit codes: 0 done, 1 the run failed, 2 a setting is wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from hpc_marl.composing.early_start import start_early_host
from hpc_marl.errors import ConfigError, HpcMarlError, LaunchError
from hpc_marl.exit_codes import EXIT_INTERRUPTED, exit_code_of

if TYPE_CHECKING:
    from argparse import Namespace

    from omegaconf import DictConfig

    from hpc_marl.base.early_host import EarlyHost
    from hpc_marl.config import ExperimentConfig


DRY_RUN_FLAG = "--dry-run"
PREPARE_FLAG = "--prepare"


class Outcome(Protocol):
    """How an experiment ended, as `run_experiment` returns it."""

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 130 interrupted."""

    @property
    def objective(self) -> float | None:
        """The final evaluation's mean return: what a sweep maximises; None where there was no evaluation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    early_host = None if "hydra" in sys.modules else start_early_host(arguments)
    try:
        return _main(arguments, early_host)
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    finally:
        if early_host is not None:
            early_host.dismiss()


def _main(arguments: list[str], early_host: EarlyHost | None) -> int:
    from hydra._internal.utils import get_args_parser

    only = {flag for flag in (DRY_RUN_FLAG, PREPARE_FLAG) if flag in arguments}
    arguments = [argument for argument in arguments if argument not in only]

    parser = get_args_parser()
    parser.prog = "hpc-marl train"
    options = parser.parse_intermixed_args(arguments)
    # Hydra itself wants its flags and the overrides each in one piece.
    hydra_flags = [argument for argument in arguments if argument not in options.overrides]
    arguments = [*hydra_flags, *options.overrides]
    if options.help:
        from hpc_marl.composing.train_help import help_text

        sys.stdout.write(help_text(options.overrides, options.config_dir))
        return 0
    if options.hydra_help or options.shell_completion or options.info:
        _run_hydra(arguments, lambda config: None)
        return 0
    experiment = _checked_experiment(options)
    if options.cfg == "job" and options.package is None:
        sys.stdout.write(_as_yaml(experiment))
        return 0
    if not _concerns_hydra(options):
        # Hydra would only compose the same once more, which takes as long as to start a worker.
        runner = _JobRunner(None, only, early_host)
        runner.run(experiment, options.overrides)
        return runner.exit_code
    runner = _JobRunner(_swept_keys(options) if options.multirun else None, only)
    _run_hydra(arguments, runner)
    return runner.exit_code


def _concerns_hydra(options: Namespace) -> bool:
    """Whether a command line says something that Hydra itself has to act on."""
    is_about_hydra = any(text.lstrip("+~").startswith("hydra") for text in options.overrides)
    return bool(options.multirun or options.cfg or options.resolve or is_about_hydra)


def _checked_experiment(options: Namespace) -> ExperimentConfig:
    from hpc_marl.composing.compose import compose_experiment
    from hpc_marl.composing.conf_files import PRIMARY_CONFIG

    # A config path of one's own would lack our defaults, and a rerun would unpickle a file.
    for name in ("config_path", "experimental_rerun"):
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} is not supported; add a directory of your own YAML files with --config-dir DIR"
            )
    return compose_experiment(
        options.overrides, options.config_dir, options.config_name or PRIMARY_CONFIG, sweep=options.multirun
    )


def _swept_keys(options: Namespace) -> list[str]:
    from hpc_marl.composing.compose import hydra_search_path
    from hpc_marl.composing.overrides import swept_keys

    with hydra_search_path(options.config_dir) as loader:
        return swept_keys(options.overrides, loader)


def _as_yaml(experiment: ExperimentConfig) -> str:
    from omegaconf import OmegaConf

    from hpc_marl.config import to_dict

    return "# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(to_dict(experiment)))


class _JobRunner:
    """The function that Hydra calls for each job; keeps the worst exit code.

    Args:
        sweep_keys: what a sweep varies; None where there is none.
        only: flags of what to do instead of training.
        early_host: was started for the one run of it.
    """

    def __init__(
        self,
        sweep_keys: Sequence[str] | None,
        only: Collection[str] = (),
        early_host: EarlyHost | None = None,
    ) -> None:
        self.exit_code = 0
        self._home = _this_process()
        self._sweep_keys, self._only, self._early_host = sweep_keys, only, early_host
        self._core_jobs: list[str] = []

    def __call__(self, composed: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        from hpc_marl.composing.compose import experiment_from

        experiment = experiment_from(composed)
        if self._sweep_keys is not None:
            experiment = self._named_in_sweep(experiment)
        return self.run(experiment, list(HydraConfig.get().overrides.task))

    def run(self, experiment: ExperimentConfig, overrides: Sequence[str]) -> float | None:
        """Run one experiment, composed from these overrides; return what a sweep maximises."""
        try:
            outcome = self._run(experiment, overrides)
            if outcome.exit_code and self._home != _this_process():
                # A Hydra launcher runs this elsewhere: our exit code is lost, an error reaches whoever waits.
                raise LaunchError(
                    f"{experiment.experiment_name}: a trial ended with exit code {outcome.exit_code}"
                )
        except HpcMarlError as error:
            if self._home != _this_process():
                raise
            # The other jobs of a sweep go on.
            sys.stderr.write(f"error: {error}\n")
            self.exit_code = max(self.exit_code, exit_code_of(error))
            return None
        self.exit_code = max(self.exit_code, outcome.exit_code)
        if outcome.exit_code == EXIT_INTERRUPTED:
            raise SystemExit(EXIT_INTERRUPTED)
        return outcome.objective

    def _run(self, experiment: ExperimentConfig, overrides: Sequence[str]) -> Outcome:
        if DRY_RUN_FLAG in self._only:
            from hpc_marl.runs.submission import dry_run_experiment

            return dry_run_experiment(experiment)
        if PREPARE_FLAG in self._only:
            from hpc_marl.runs.submission import prepare_in_job

            return prepare_in_job(experiment)
        if experiment.controller == "session":
            from hpc_marl.runs.session import run_experiment

            return run_experiment(experiment, overrides, early_host=self._early_host)
        from hpc_marl.runs.submission import submit_experiment

        limit = experiment.max_concurrent
        waits = limit is not None and len(self._core_jobs) >= limit
        # Every trial begins when the one `limit` places before it has ended: never more than `limit` at once.
        submitted = submit_experiment(experiment, after=self._core_jobs[-limit] if waits and limit else "")
        self._core_jobs.append(submitted.core_job_id)
        return submitted.outcome

    def _named_in_sweep(self, experiment: ExperimentConfig) -> ExperimentConfig:
        """Name the trial by what the sweep varies, so that a sweep with resume=true finds its trials."""
        import dataclasses

        from hydra.core.hydra_config import HydraConfig

        job = HydraConfig.get()
        sys.stdout.write(f"job {job.job.num}: {' '.join(job.overrides.task)}\n")
        if experiment.trial_name is not None or not self._sweep_keys:
            return experiment
        varied = [text for text in job.overrides.task if text.split("=")[0].lstrip("+") in self._sweep_keys]
        parts = [
            text.lstrip("+").split("=")[0].split(".")[-1] + "=" + text.split("=", 1)[1] for text in varied
        ]
        if "seed" not in self._sweep_keys:
            parts.append(f"seed={experiment.seed}")
        name = re.sub(r"[^A-Za-z0-9_.+=-]", "_", "-".join(parts))
        return dataclasses.replace(experiment, trial_name=name[:100])


def _this_process() -> tuple[str, int]:
    return os.uname().nodename, os.getpid()


def _run_hydra(arguments: Sequence[str], task: object) -> None:
    """Let Hydra run `task` with its own command line; Hydra reads sys.argv and nothing else."""
    import hydra

    from hpc_marl.composing.compose import VERSION_BASE, register_defaults
    from hpc_marl.composing.conf_files import PRIMARY_CONFIG, conf_directory

    register_defaults()

    def run_job(composed: DictConfig) -> float | None:
        return task(composed)  # type: ignore[operator, no-any-return]

    decorate = hydra.main(
        config_path=str(conf_directory()), config_name=PRIMARY_CONFIG, version_base=VERSION_BASE
    )
    with _program_arguments(["hpc-marl train", *arguments]):
        decorate(run_job)()


@contextmanager
def _program_arguments(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
