"""Find a directory that login node and compute nodes share, and make sure of it by a job of a second."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_marl.base.mounts import mount_of
from hpc_marl.errors import ConfigError, LaunchError
from hpc_marl.launch.site_survey import SiteSurvey, ask

NETWORK_TYPES = (
    "nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "cifs", "smb", "afs", "gluster", "pvfs", "orangefs",
    "weka", "panfs", "9p", "virtiofs", "quobyte", "wekafs",
)  # fmt: skip
# Where sites say which directory is meant for jobs' files.
_VARIABLES = ("SCRATCH", "PSCRATCH", "CSCRATCH", "WORK", "WORKDIR", "PROJECT", "WRKDIR", "SCRATCHDIR")
_IMMEDIATE_S = 60
_SEEN = 'for f in "$@"; do if test -f "$f"; then echo "$f"; fi; done'


@dataclass(frozen=True)
class SharedRoot:
    """A directory for all runs.

    Attributes:
        spelling: as the profile writes it; may hold `${oc.env:VARIABLE}`.
        remark: how it was found.
    """

    spelling: str
    remark: str


@dataclass(frozen=True)
class Candidate:
    """A directory that may be shared.

    Attributes:
        spelling: as the profile would write it.
        path: what that means here.
    """

    spelling: str
    path: Path

    @property
    def mount_type(self) -> str:
        """Type of its filesystem."""
        return mount_of(self.path)[0]

    @property
    def on_network(self) -> bool:
        """Whether its filesystem is one that machines share."""
        return self.mount_type.startswith(NETWORK_TYPES)


def find_shared_root(
    asked: str | None, survey: SiteSurvey, partition: str | None, directives: Mapping[str, str]
) -> SharedRoot:
    """Return where runs should lie.

    Args:
        asked: what the user wants, to be checked; None: look for one.
        survey: of the site.
        partition: where to run the job that looks.
        directives: which that job needs.

    Raises:
        ConfigError: the directory asked for is not there, or none is shared.
    """
    candidates = [_asked(asked)] if asked else candidate_directories()
    if not candidates:
        raise ConfigError("no directory that you can write to was found; name one by --shared-root DIR")
    try:
        seen = seen_on_a_node([one.path for one in candidates], partition, directives)
    except LaunchError as error:
        first = candidates[0]
        why = str(error).splitlines()[0]
        return SharedRoot(
            first.spelling,
            f"On {first.mount_type}; NOT VERIFIED that nodes see it, as no job could look: {why}",
        )
    for one in candidates:
        if one.path in seen:
            return SharedRoot(
                one.spelling, f"On {one.mount_type}; a job on a node of {partition} has seen it."
            )
    listed = ", ".join(f"{one.path} ({one.mount_type})" for one in candidates)
    raise ConfigError(
        f"a job on a node of {partition} sees none of {listed} as this machine does; "
        f"name a directory that all of {survey.cluster_name} shares by --shared-root DIR"
    )


def _asked(text: str) -> Candidate:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = str(OmegaConf.create({"root": text}).root)
    except OmegaConfBaseException as error:
        raise ConfigError(f"--shared-root {text}: {str(error).splitlines()[0]}") from error
    path = Path(os.path.abspath(Path(resolved).expanduser()))
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--shared-root {text}: {path} is not a directory that you can write to; make it first"
        )
    return Candidate(text if "${" in text else str(path), path)


def candidate_directories() -> list[Candidate]:
    """Return directories that may be shared, the likeliest first.

    Those on network filesystems go before the others, and those that a variable of the site's names before the
    current directory and home.
    """
    found = [
        Candidate(f"${{oc.env:{name}}}", Path(os.environ[name]))
        for name in _VARIABLES
        if os.environ.get(name)
    ]
    found.append(Candidate(str(Path.cwd()), Path.cwd()))
    found.append(Candidate("${oc.env:HOME}", Path.home()))
    return sorted(_usable(found), key=lambda one: not one.on_network)


def _usable(candidates: Iterable[Candidate]) -> list[Candidate]:
    by_path: dict[Path, Candidate] = {}
    for one in candidates:
        with suppress(OSError):
            if one.path.is_absolute() and one.path.is_dir() and os.access(one.path, os.W_OK | os.X_OK):
                by_path.setdefault(one.path.resolve(), one)
    return list(by_path.values())


def seen_on_a_node(
    directories: Sequence[Path], partition: str | None, directives: Mapping[str, str]
) -> set[Path]:
    """Return which of these directories a compute node sees, with what this machine has just put there.

    Raises:
        LaunchError: no job could run within a minute.
    """
    marks: dict[str, Path] = {}
    try:
        for directory in directories:
            mark = directory / f".hpc-marl-{uuid.uuid4().hex}"
            mark.touch(mode=0o600)
            marks[str(mark)] = directory
        options = [f"--partition={partition}"] if partition else []
        options += [f"--{key}={value}" for key, value in directives.items()]
        output = ask(
            ["srun", *options, "--ntasks=1", "--time=2", f"--immediate={_IMMEDIATE_S}", "--chdir=/", "--quiet",
             "--job-name=hpc-marl-init", "/bin/sh", "-c", _SEEN, "sh", *marks],
            timeout_s=2 * _IMMEDIATE_S,
        )  # fmt: skip
    except OSError as error:
        raise LaunchError(f"cannot write to {error.filename}: {error.strerror}") from error
    finally:
        for path in marks:
            Path(path).unlink(missing_ok=True)
    return {marks[line] for line in output.splitlines() if line in marks}
