"""LaunchRecord: launch.json, the handle of a run: everything a worker or a controller needs to find the others."""

from __future__ import annotations

from typing import Literal

import msgspec

from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.errors import ConfigError


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One submission: a job, a job array or a component of a heterogeneous job."""

    job_id: str
    """As sbatch printed it: `123`; a component of a heterogeneous job: `123+1`."""
    role: str
    slots: list[int]
    """Filled by it; of a job array, slot k of this list is the element `<job_id>_k`."""
    is_array: bool = False
    submitted: str = ""
    """ISO time, by the submitting host's clock."""
    script: str = ""
    """The sbatch script as submitted; "" where the user submitted one of his own."""
    name: str = ""
    """Of the job in the queue, where it is not ours; "" for our own names."""


class LaunchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a launch of a trial is; a resumed trial gets a new one with a new run_uuid."""

    experiment_name: str
    trial_name: str
    run_uuid: str
    """Names and keys of this launch; nothing of an earlier one is ever trusted."""
    epoch: int
    """The trainer's first right to write in this launch: above every checkpoint's epoch."""
    interface: str | None
    heartbeat_interval_s: float
    orphan_grace_s: float
    host_grace_s: float = 30.0
    """A host process that no controller speaks to for this long ends, and its job with it."""
    worker_kinds: dict[str, str] = {}
    """Kinds of the user's own: kind -> module:Class."""
    code_version: str = ""
    user: str = ""
    host: str = ""
    pid: int = 0
    """The controller's process on `host`, with its creation time, because process ids are used again."""
    pid_create_time: float = 0.0
    port_range: tuple[int, ...] = ()
    controller: Literal["session", "job"] = "session"
    """Who drives at first."""
    has_deputy: bool = False
    """Whether the host of slot 0 starts a controller of its own when nobody drives."""
    jobs: list[JobRecord] = []

    def role_of(self, slot: int) -> str:
        """Return the role of a slot's newest job: `core` or `actors`."""
        for job in reversed(self.jobs):
            if slot in job.slots:
                return job.role
        return "core" if slot == 0 else "actors"


def write_launch_record(directory: RunDirectory, record: LaunchRecord) -> None:
    """Write launch.json, atomically."""
    atomic_write(directory.launch_file, msgspec.json.format(msgspec.json.encode(record), indent=1))


def add_job(directory: RunDirectory, job: JobRecord) -> None:
    """Remember a submission in launch.json. Only the holder of the controller's lease may call it."""
    record = read_launch_record(directory)
    write_launch_record(directory, msgspec.structs.replace(record, jobs=[*record.jobs, job]))


def read_launch_record(directory: RunDirectory) -> LaunchRecord:
    """Read launch.json.

    Raises:
        ConfigError: there is none, or it is not one of ours.
    """
    try:
        return msgspec.json.decode(directory.launch_file.read_bytes(), type=LaunchRecord)
    except FileNotFoundError:
        raise ConfigError(
            f"{directory.path} holds no run: there is no {directory.launch_file.name}"
        ) from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{directory.launch_file} is not a launch record: {error}") from None
