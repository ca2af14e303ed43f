"""`hpc-marl doctor`: test what runs need of a site, by tiny jobs, before a run needs it.

site      commands, controller, partitions, limits, sbatch --test-only        doctor_site
probes    one job per kind of node (hpc_marl.site.probe), see doctor_visit   doctor_nodes
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hpc_marl.base.permissions import make_private_directory
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import ConfigError, HpcMarlError, LaunchError, SecurityError
from hpc_marl.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, exit_code_of
from hpc_marl.site.findings import Report, fail, ok

DEFAULT_TIMEOUT_S = 300.0


def main(arguments: Sequence[str]) -> int:
    """Run `hpc-marl doctor cluster=SITE [SETTING=VALUE ...] [--config-dir DIR] [--timeout SECONDS]`."""
    parser = argparse.ArgumentParser(
        prog="hpc-marl doctor",
        description="Test what runs need of a Slurm site, by tiny jobs. Exit code 0: nothing that fails was found.",
    )
    parser.add_argument(
        "overrides", nargs="*", help="as for `hpc-marl train`: cluster=SITE, actors.count=64 ..."
    )
    parser.add_argument("--config-dir", "-cd", help="add YAML files of your own, laid out like conf/")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        help="seconds that a job may wait in the queue (300)",
    )
    options = parser.parse_intermixed_args(arguments)
    report = Report(sys.stdout)
    try:
        from hpc_marl.composing.compose import compose_experiment

        config = compose_experiment(options.overrides, options.config_dir)
        if config.cluster.kind != "slurm":
            raise ConfigError(
                "cluster.kind is local; name a Slurm site, as in `hpc-marl doctor cluster=SITE`; "
                "`hpc-marl cluster init` writes its profile"
            )
        with _interrupted_by_sigterm():
            examine(config, report, options.timeout)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the jobs are cancelled\n")
        return EXIT_INTERRUPTED
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    sys.stdout.write(f"\n{report.summary()}\n")
    return EXIT_FAILED if report.has_failed else 0


def examine(config: ExperimentConfig, report: Report, timeout_s: float) -> None:
    """Do all checks; what depends on one that failed is left out.

    Args:
        config: whose cluster and plan are tested.
        report: gets the lines.
        timeout_s: how long jobs may wait in the queue.
    """
    from hpc_marl.launch.plan import make_plan
    from hpc_marl.launch.site_survey import survey_site
    from hpc_marl.site.probe_jobs import checked_scripts, node_kinds
    from hpc_marl.site.site_checks import (
        COMMANDS,
        accounting_lines,
        command_lines,
        controller_lines,
        kind_lines,
        limit_lines,
        script_lines,
    )
    from hpc_marl.site.visit import Visit

    missing = [name for name in COMMANDS if shutil.which(name) is None]
    report.add(command_lines(missing))
    if missing:
        return
    try:
        survey = survey_site()
    except LaunchError as error:
        report.add(fail("controller", str(error), "ask the site; see whether `sinfo` answers"))
        return
    plan = make_plan(config)
    report.add(controller_lines(survey))
    report.add(limit_lines(plan, config.cluster, survey))
    report.add(accounting_lines(_sacct_problem()))
    kinds = []
    for kind in node_kinds(plan, config.cluster):
        line = kind_lines(kind, survey)
        report.add(line)
        if line.level != "fail":
            kinds.append(kind)
    base = base_directory(config)
    try:
        with scratch_directory(base) as directory:
            report.add(ok("shared root", f"{base} can be written to"))
            largest = int(survey.settings.get("MaxArraySize", "1001"))
            usable = {kind.partition for kind in kinds}
            if all(job.partition in usable for job in plan.jobs):
                for roles, said in checked_scripts(plan, config.cluster, directory, largest):
                    report.add(script_lines(roles, said))
            with Visit(config.cluster, survey, directory, report, timeout_s) as visit:
                visit.make(kinds)
    except (SecurityError, OSError) as error:
        report.add(fail("shared root", str(error), "set cluster.shared_root to a directory of your own"))


def base_directory(config: ExperimentConfig) -> Path:
    """Return where runs would lie, or the nearest directory above it that exists."""
    base = Path(os.path.abspath(Path(config.cluster.shared_root or ".").expanduser() / config.root))
    while not base.is_dir() and base != base.parent:
        base = base.parent
    return base


@contextmanager
def scratch_directory(base: Path) -> Iterator[RunDirectory]:
    """Make the directory of a visit, with keys, as a run's is made; remove it afterwards.

    Raises:
        SecurityError: others could read or replace what runs write there.
        OSError: nothing can be written there.
    """
    from hpc_marl.base.security import create_keyring
    from hpc_marl.site.exchange import RUN_UUID

    directory = RunDirectory(base, f"doctor-{uuid.uuid4().hex[:8]}", "visit")
    try:
        make_private_directory(directory.path)
        for part in (directory.logs / "jobs", directory.job_scripts, directory.names(RUN_UUID)):
            make_private_directory(part)
        create_keyring(directory.auth(RUN_UUID))
        yield directory
    finally:
        shutil.rmtree(directory.path.parent, ignore_errors=True)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the jobs are cancelled."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sacct_problem() -> str:
    from hpc_marl.launch.slurm_commands import run_command

    answer = run_command(["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-S", "now-1minutes"])
    return "" if answer.is_ok else (answer.error or "it said nothing")
