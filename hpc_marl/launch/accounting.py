"""What Slurm's accounting says of jobs that ran: one call of sacct, and a reader that minds no odd field."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

_FORMAT = "JobID,State,Submit,Start,End,ElapsedRaw,TotalCPU,CPUTimeRAW,MaxRSS,ReqMem,AllocTRES"
_TIMEOUT_S = 60.0
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)[nc]?")
_MB_OF_UNIT = {"": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20, "P": 2.0**30}


@dataclass(frozen=True)
class AccountedLife:
    """One life of a job, or of an array element; a requeued job has several.

    Attributes:
        job_id: `123`, `123_4` or `123+1`.
        state: in Slurm's word, such as COMPLETED or PREEMPTED.
        submitted: unix time; of a later life, when it was requeued. None: unknown.
        started: unix time; None: it has not.
        ended: unix time; None: it has not.
        elapsed_s: wall time.
        cpu_s: CPU time used, of all its steps that have ended.
        allocated_cpu_s: CPU time that was held.
        max_rss_mb: most of any task of any step; 0 where it was not measured.
        memory_mb: memory that was held, of all nodes together; 0: unknown.
        gpus: GPUs that were held.
    """

    job_id: str
    state: str
    submitted: float | None
    started: float | None
    ended: float | None
    elapsed_s: float
    cpu_s: float
    allocated_cpu_s: float
    max_rss_mb: float
    memory_mb: float
    gpus: int

    @property
    def queue_wait_s(self) -> float | None:
        """Time between submission and start; None where one of them is unknown."""
        return None if self.submitted is None or self.started is None else self.started - self.submitted


@dataclass(frozen=True)
class Accounting:
    """The answer of sacct.

    Attributes:
        lives: oldest first within a job.
        problem: why there are none; "" otherwise.
    """

    lives: tuple[AccountedLife, ...] = ()
    problem: str = ""


def ask_accounting(job_ids: Iterable[str]) -> Accounting:
    """Ask sacct once for all lives of these jobs; no answer is an answer too: its `problem` says why."""
    wanted = list(job_ids)
    if not wanted:
        return Accounting(problem="no job of Slurm")
    command = ["sacct", "-j", ",".join(wanted), "--parsable2", "--noheader", f"--format={_FORMAT}", "-D"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return Accounting(problem="there is no sacct here")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Accounting(problem=f"sacct does not answer: {error}")
    lives = parse_sacct(done.stdout)
    if lives:
        return Accounting(lives)
    said = done.stderr.strip().splitlines()
    return Accounting(problem=f"sacct says: {said[-1]}" if said else "sacct knows none of the jobs")


def parse_sacct(text: str) -> tuple[AccountedLife, ...]:
    """Return the lives in sacct's output; steps (`123.batch`, `123.0`) add their memory to the life above them.

    >>> line = "9_1|COMPLETED|2026-01-02T00:00:00|2026-01-02T00:01:00|2026-01-02T00:11:00|600|05:00.000|1200||4G|cpu=2"
    >>> [life] = parse_sacct(line + "\\n9_1.0|COMPLETED||||600|05:00|1200|12345K||cpu=2")
    >>> life.job_id, life.queue_wait_s, life.cpu_s, life.allocated_cpu_s, life.memory_mb, round(life.max_rss_mb, 1)
    ('9_1', 60.0, 300.0, 1200.0, 4096.0, 12.1)
    """
    lives: list[AccountedLife] = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(_FORMAT.split(",")) or not fields[0][:1].isdigit():
            continue
        job_id, is_step = fields[0].split(".")[0], "." in fields[0]
        if not is_step:
            lives.append(_life(fields))
        elif lives and lives[-1].job_id == job_id:
            above = lives[-1]
            lives[-1] = replace(
                above,
                max_rss_mb=max(above.max_rss_mb, _megabytes(fields[8])),
                cpu_s=max(above.cpu_s, _cpu_seconds(fields[6])),
            )
    return tuple(lives)


def _life(fields: list[str]) -> AccountedLife:
    resources = dict(part.split("=", 1) for part in fields[10].split(",") if "=" in part)
    return AccountedLife(
        job_id=fields[0],
        state=(fields[1].split() or [""])[0].rstrip("+"),
        submitted=_unix_time(fields[2]),
        started=_unix_time(fields[3]),
        ended=_unix_time(fields[4]),
        elapsed_s=_number(fields[5]),
        cpu_s=_cpu_seconds(fields[6]),
        allocated_cpu_s=_number(fields[7]),
        max_rss_mb=_megabytes(fields[8]),
        memory_mb=_megabytes(resources.get("mem", "")) or _megabytes(fields[9]),
        gpus=int(_number(resources.get("gres/gpu", ""))),
    )


def _unix_time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None  # Unknown, None


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def _cpu_seconds(text: str) -> float:
    """Return the seconds of `1-02:03:04`, `02:03:04` or `03:04.500`."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (_number(part) for part in ["0", "0", *clock.split(":")][-3:])
    return ((_number(days) * 24 + hours) * 60 + minutes) * 60 + seconds


def _megabytes(text: str) -> float:
    found = _SIZE.fullmatch(text.strip())
    return float(found[1]) * _MB_OF_UNIT[found[2]] if found else 0.0
