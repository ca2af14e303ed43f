"""`hpc-marl cluster init`: ask Slurm what this site is like and write `conf/cluster/<site>.yaml`.

survey (hpc_marl.launch.site_survey) --choose_profile--> SiteProfile --profile_text--> YAML with comments
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc_marl.errors import ConfigError, HpcMarlError, LaunchError
from hpc_marl.exit_codes import EXIT_USAGE, exit_code_of
from hpc_marl.launch.site_survey import survey_site
from hpc_marl.site.cluster_profile import SiteProfile, choose_profile, profile_text
from hpc_marl.site.shared_directories import find_shared_root

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def main(arguments: Sequence[str]) -> int:
    """Run `hpc-marl cluster init [NAME] [--output DIR] [--shared-root DIR] [--force]`."""
    parser = argparse.ArgumentParser(
        prog="hpc-marl cluster",
        description="Describe this site's Slurm in a profile, conf/cluster/NAME.yaml.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="init")
    init = actions.add_parser("init", help="ask Slurm and write the profile")
    init.add_argument("name", nargs="?", help="the profile's name; default: Slurm's ClusterName")
    init.add_argument(
        "--output",
        type=Path,
        help="a directory laid out like conf/; default: that of this clone, else ./conf",
    )
    init.add_argument(
        "--shared-root",
        help="directory of all runs, on a filesystem that nodes share; may hold '${oc.env:VARIABLE}'",
    )
    init.add_argument("--force", action="store_true", help="replace a profile that exists")
    options = parser.parse_args(arguments)
    try:
        path, profile = write_profile(options.name, options.output, options.shared_root, options.force)
    except LaunchError as error:
        # Without Slurm this is the wrong machine: the command was wrong, nothing has failed.
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    sys.stdout.write(_summary(path, profile, options.output))
    return 0


def write_profile(
    name: str | None, output: Path | None, shared_root: str | None, force: bool
) -> tuple[Path, SiteProfile]:
    """Write the profile and return its path and content.

    Args:
        name: of the profile; None: Slurm's name of the cluster.
        output: directory laid out like conf/; None: that of this clone, else ./conf.
        shared_root: as the user wrote it; None: to be found.
        force: replace an existing profile.

    Raises:
        LaunchError: no Slurm here, or it does not answer.
        ConfigError: the profile exists, cannot be written, or no directory is shared with the nodes.
    """
    directory = (output or _default_output()) / "cluster"
    if name is not None:
        _check_free(name, directory, force)
    survey = survey_site()
    name = name or survey.cluster_name
    path = _check_free(name, directory, force)
    profile = choose_profile(survey)
    root = find_shared_root(
        shared_root, survey, profile.cpu_partition or profile.gpu_partition, profile.directives
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(profile_text(name, survey, profile, root), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose a place by --output DIR") from error
    return path, profile


def _check_free(name: str, directory: Path, force: bool) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"profile name {name!r}: use letters, digits and _ . -, and begin with a letter or digit"
        )
    path = directory / f"{name}.yaml"
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; replace it by --force, or choose another name")
    return path


def _default_output() -> Path:
    clone = Path(__file__).resolve().parents[2] / "conf"
    return clone if (clone / "config.yaml").is_file() else Path("conf")


def _summary(path: Path, profile: SiteProfile, output: Path | None) -> str:
    """Return what was written and what to do next."""
    is_ours = output is None and path.is_relative_to(_default_output()) and _default_output().is_absolute()
    directory = "" if is_ours else f" --config-dir {path.parent.parent}"
    partitions = [profile.cpu_partition or "no partition", profile.gpu_partition or "no partition"]
    return (
        f"{path}\n"
        f"  jobs without GPUs go to {partitions[0]}, with GPUs to {partitions[1]}\n"
        f"look it through, then test it: hpc-marl doctor cluster={path.stem}{directory}\n"
    )
