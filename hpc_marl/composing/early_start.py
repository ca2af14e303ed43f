"""Whether a command line will train on this machine, from a look that costs a millisecond."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from hpc_marl.base.early_host import EarlyHost
from hpc_marl.composing.conf_files import PRIMARY_CONFIG, conf_directory
from hpc_marl.errors import ConfigError

_CLUSTER = re.compile(r"^[^#\n]*\bcluster:[ \t]*([^\s,\]}]*)", re.MULTILINE)
"""A choice of the cluster among the defaults of a file, or settings of it."""


def start_early_host(arguments: Sequence[str]) -> EarlyHost | None:
    """Start a host in waiting where the command line will need one, as it seems; None: none is started.

    It is given up where composing finds otherwise. A login node begins nothing in vain: where the run may be one of
    Slurm, nothing is started.
    """
    if not seems_to_train_here(arguments):
        return None
    try:
        return EarlyHost()
    except OSError:  # whoever starts the run's own processes will say so
        return None


def seems_to_train_here(arguments: Iterable[str]) -> bool:
    """Whether these arguments of `hpc-marl train` mean one run on this machine.

    >>> seems_to_train_here(["experiment=lbf_mappo", "seed=3"])
    True
    >>> seems_to_train_here(["experiment=lbf_mappo", "cluster=site"]), seems_to_train_here(["--help"])
    (False, False)
    """
    settings: dict[str, str] = {}
    has_own_files = False
    words = iter(arguments)
    for word in words:
        name, is_setting, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            has_own_files = True
            if not is_setting:
                next(words, None)
        elif is_setting and not name.startswith("-") and "hydra" not in name:
            settings[name.lstrip("+~")] = value
        else:  # other flags, and what is said to Hydra, mean something else
            return False
    return _is_local(settings, has_own_files)


def _is_local(settings: Mapping[str, str], has_own_files: bool) -> bool:
    if settings.get("controller", "session") != "session" or "cluster.kind" in settings:
        return False
    if "cluster" in settings:
        return settings["cluster"] == "local"
    if not _is_program("sbatch"):
        return True
    return not has_own_files and _our_files_say_local()


def _is_program(name: str) -> bool:
    # As shutil.which finds it, whose import takes longer than all of this.
    return any(os.access(os.path.join(path, name), os.X_OK) for path in os.get_exec_path())


def _our_files_say_local() -> bool:
    """Whether no choice of ours names another cluster; somebody may have edited them."""
    try:
        conf = conf_directory()
        files = [conf / f"{PRIMARY_CONFIG}.yaml", *conf.glob("experiment/*.yaml")]
        found = [name for file in files for name in _CLUSTER.findall(file.read_text())]
    except (ConfigError, OSError):
        return False
    return bool(found) and set(found) == {"local"}
