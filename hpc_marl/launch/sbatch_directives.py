"""The #SBATCH directives of a job: ours first, then what the site adds, changes or removes.

Job + ClusterConfig --job_directives--> {"job-name": "exp.seed1.core", "requeue": True, ...} --> lines of the script
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ClusterConfig
from hpc_marl.errors import ConfigError
from hpc_marl.launch.plan import Job

Directives = dict[str, str | bool]
"""Long name, without dashes in front -> value; True is a flag without value."""

_KEY = re.compile(r"[a-z][a-z0-9-]+")
# sbatch refuses two of these at once: what a site asks for takes the place of what we ask for.
_EXCLUSIVE = ({"mem", "mem-per-cpu", "mem-per-gpu"},)
# Of a heterogeneous job Slurm heeds these in the first component alone.
_FIRST_COMPONENT_ONLY = ("chdir", "output", "open-mode", "dependency", "kill-on-invalid-dep")


def job_directives(
    job: Job,
    cluster: ClusterConfig,
    directory: RunDirectory,
    *,
    working_directory: str,
    dependency: str = "",
    parallelism: int | None = None,
    component: int | None = None,
) -> Directives:
    """Return the directives of a job, or of one component of a heterogeneous job.

    Args:
        job: with the slots that are submitted.
        cluster: the site.
        directory: of the run, which also names it.
        working_directory: the job's: user modules are found there.
        dependency: as for `sbatch --dependency`; "" for none.
        parallelism: most elements of the job array that run at once; None: all.
        component: which one of a heterogeneous job; None: it is none.

    Raises:
        ConfigError: a directive of the site's cannot stand in a script.
    """
    pattern = "%A_%a" if job.is_array else "%j"
    ours: dict[str, Any] = {
        "job-name": f"{directory.experiment_name}.{directory.trial_name}.{job.role}",
        "chdir": working_directory,
        "output": f"{directory.logs / 'jobs'}/".replace("%", "%%") + f"%x.{pattern}.out",
        "open-mode": "append",
        **_shape(job, is_component=component is not None),
        **_gpus(job, cluster),
        "time": job.time_limit,
        "partition": job.partition,
        "constraint": job.constraint,
        # To the steps alone; Slurm may send it up to a minute early.
        "signal": f"USR2@{cluster.signal_lead_s}",
        "requeue": True,
        "dependency": dependency or None,
        "kill-on-invalid-dep": "yes" if dependency and job.role == "actors" else None,
    }
    if job.is_array:
        ours["array"] = f"0-{len(job.slots) - 1}" + (f"%{parallelism}" if parallelism else "")
    if component:
        ours = {key: value for key, value in ours.items() if key not in _FIRST_COMPONENT_ONLY}
    role = cluster.core_directives if job.role == "core" else cluster.actor_directives
    return _with_site({}, ours, cluster.directives, role)


def directive_lines(directives: Directives) -> list[str]:
    """Return the lines of a script.

    >>> directive_lines({"requeue": True, "comment": "two words", "time": "1:00:00"})
    ['#SBATCH --requeue', "#SBATCH --comment='two words'", '#SBATCH --time=1:00:00']
    """
    return [
        f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in directives.items()
    ]


def _shape(job: Job, is_component: bool) -> dict[str, Any]:
    """Nodes, tasks, CPUs and memory."""
    count = len(job.slots)
    shape: dict[str, Any]
    # GPUs are asked for by node, so several tasks that have some need nodes of their own.
    if job.task_per_node or (job.gpus and not job.is_array):
        shape = {"nodes": count, "ntasks-per-node": 1}
    else:
        shape = {"ntasks": 1 if job.is_array else count}
    shape["cpus-per-task"] = job.cpus
    if job.memory_mb is not None and is_component:
        # --mem is a node's, and how many tasks come to one node is not known; sbatch takes only one of the two for
        # all components.
        shape["mem-per-cpu"] = f"{math.ceil(job.memory_mb / job.cpus)}M"
    elif job.memory_mb is not None:
        shape["mem"] = f"{job.memory_mb}M"
    return shape


def _gpus(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    if not job.gpus:
        return {}
    key, _, value = cluster.gpu_request.format(gpus=job.gpus).partition("=")
    return {key.lstrip("-"): value}


def _with_site(directives: Directives, *layers: Mapping[str, Any]) -> Directives:
    """Apply the layers in turn; null removes a directive, True makes a flag."""
    for layer in layers:
        for written, value in layer.items():
            key = _checked_key(written)
            for group in _EXCLUSIVE:
                if key in group and value not in (None, False):
                    for other in group - {key}:
                        directives.pop(other, None)
            if value is None or value is False:
                directives.pop(key, None)
            else:
                directives[key] = value if value is True else _checked_value(key, value)
    return directives


def _checked_key(written: str) -> str:
    key = str(written).lstrip("-").replace("_", "-")
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"cluster directive {written!r}: write sbatch's long option without dashes in front, such as account or "
            "mail-type"
        )
    return key


def _checked_value(key: str, value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    if not text.isprintable():
        raise ConfigError(f"cluster directive {key}={text!r}: write one line of printable characters")
    return text
