"""state/time_use.json: where the time of a run went, by kind of worker and activity.

Its controllers write it, one after the other. Only training counts: from the first update that is known to the last,
and of every worker while it runs, so that neither start-up nor the end looks like waiting.
"""

from __future__ import annotations

import msgspec

from hpc_marl.base.run_directory import RunDirectory, atomic_write


class KindTime(msgspec.Struct):
    """The workers of one kind, all together.

    Attributes:
        workers: how many of them were seen.
        seconds: activity -> seconds.
        cpu_s: CPU seconds that their processes used.
        device_s: seconds that their GPUs were at work, gaps between kernels included.
    """

    workers: int = 0
    seconds: dict[str, float] = {}
    cpu_s: float = 0.0
    device_s: float = 0.0

    def shares(self) -> dict[str, float]:
        """Return activity -> share of the time; they add up to 1. Empty where no time was seen.

        >>> KindTime(1, {"env": 3.0, "write": 1.0}).shares()
        {'env': 0.75, 'write': 0.25}
        """
        total = sum(self.seconds.values())
        return {activity: spent / total for activity, spent in self.seconds.items()} if total > 0 else {}


class TimeRecord(msgspec.Struct):
    """One launch of a trial.

    Attributes:
        run_uuid: which one.
        startup_s: from its start to the first update.
        training_s: how long its training was watched.
        updates: of the parameters in that time.
        env_steps: learned from in that time.
        kinds: such as `actor` -> where its time went.
    """

    run_uuid: str = ""
    startup_s: float = 0.0
    training_s: float = 0.0
    updates: int = 0
    env_steps: int = 0
    kinds: dict[str, KindTime] = {}


def write_time_record(directory: RunDirectory, record: TimeRecord) -> None:
    """Replace the trial's record. Raises OSError."""
    atomic_write(directory.time_use_file, msgspec.json.format(msgspec.json.encode(record), indent=1))


def read_time_record(directory: RunDirectory, run_uuid: str | None = None) -> TimeRecord | None:
    """Return the trial's record; None where there is none, or only of another launch than `run_uuid`."""
    try:
        record = msgspec.json.decode(directory.time_use_file.read_bytes(), type=TimeRecord)
    except (OSError, msgspec.MsgspecError):
        return None
    return record if run_uuid in (None, record.run_uuid) else None
