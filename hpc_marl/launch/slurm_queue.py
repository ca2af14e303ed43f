"""What squeue and sacct print, as values. Pure: no command is run here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from hpc_marl.base.jobs import JobState

SQUEUE_FORMAT = "%i|%T|%r|%N|%S|%u|%j"
"""Fixed fields, which every version of Slurm prints alike; its JSON differs."""
SACCT_FORMAT = "JobID,State,NodeList,User,JobName"

_STATES = {
    JobState.PENDING: "PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT PREEMPTED",
    JobState.RUNNING: "RUNNING CONFIGURING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    JobState.COMPLETED: "COMPLETED",
    JobState.FAILED: "FAILED OUT_OF_MEMORY LAUNCH_FAILED RECONFIG_FAIL",
    JobState.CANCELLED: "CANCELLED REVOKED",
    JobState.TIMEOUT: "TIMEOUT DEADLINE",
    JobState.NODE_FAIL: "NODE_FAIL BOOT_FAIL",
}
_STATE_OF = {word: state for state, words in _STATES.items() for word in words.split()}
_ARRAY = re.compile(r"(\d+)_\[([\d,\-]+)(?:%\d+)?\]")
_ID = re.compile(r"\d+(?:[_+]\d+)?")
# Slurm could not start the job, and holds it; newer versions write `_` for the spaces.
_STUCK = {"launch failed requeued held", "JobHoldMaxRequeue"}
_NO_REASON = {"None", "(null)", "N/A"}


@dataclass(frozen=True)
class QueueRow:
    """One job, array element or component of a heterogeneous job.

    Attributes:
        job_id: `123`, `123_4` or `123+1`.
        state: None where Slurm says a word that is not known here.
        reason: why it is pending; "" otherwise.
        nodes: as Slurm writes them, `cpu[1-2]`; "" where there are none.
        expected_start: ISO time of a pending job; "" where there is none.
        user: the owner.
        name: the job's.
    """

    job_id: str
    state: JobState | None
    reason: str
    nodes: str
    expected_start: str
    user: str
    name: str

    @property
    def is_stuck(self) -> bool:
        """Whether Slurm holds it because it could not start it: it will not run unless somebody releases it.

        >>> QueueRow("7", JobState.PENDING, "launch failed requeued held", "", "", "me", "a.b.core").is_stuck
        True
        """
        return self.state is JobState.PENDING and self.reason.replace("_", " ") in _STUCK


def job_state(word: str) -> JobState | None:
    """Return what a state of Slurm's means to a slot: one that will be run again is pending; None: not known.

    >>> job_state("CANCELLED by 0"), job_state("OUT_OF_ME+"), job_state("SUSPENDED"), job_state("GONE")
    (<JobState.CANCELLED: 'CANCELLED'>, <JobState.FAILED: 'FAILED'>, <JobState.RUNNING: 'RUNNING'>, None)
    """
    name = word.strip().split(" ")[0]
    if not name.endswith("+"):
        return _STATE_OF.get(name)
    meanings = {state for known, state in _STATE_OF.items() if known.startswith(name[:-1])}
    return meanings.pop() if len(meanings) == 1 else None


def expand_job_id(text: str) -> list[str]:
    """Return the ids that an id of squeue's or sacct's stands for.

    >>> expand_job_id("123_[5-7,9%2]"), expand_job_id("123+1"), expand_job_id("123.batch")
    (['123_5', '123_6', '123_7', '123_9'], ['123+1'], [])
    """
    if found := _ARRAY.fullmatch(text):
        return [f"{found[1]}_{index}" for index in _indices(found[2])]
    return [text] if _ID.fullmatch(text) else []


def _indices(text: str) -> Iterator[int]:
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def parse_squeue(output: str) -> dict[str, QueueRow]:
    """Return the rows of `squeue -h -o SQUEUE_FORMAT` by job id; lines that are none are left out."""
    rows = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|", 6)]
        if len(fields) != 7:
            continue
        ids, word, reason, nodes, start, user, name = fields
        state = job_state(word)
        is_pending = state is JobState.PENDING
        for job_id in expand_job_id(ids):
            rows[job_id] = QueueRow(
                job_id=job_id,
                state=state,
                reason=reason if is_pending and reason not in _NO_REASON else "",
                nodes="" if nodes in _NO_REASON else nodes,
                expected_start=start if is_pending and start not in _NO_REASON else "",
                user=user,
                name=name,
            )
    return rows


def parse_sacct(output: str) -> dict[str, QueueRow]:
    """Return the rows of `sacct -n -P -X -o SACCT_FORMAT` by job id; lines that are none are left out."""
    rows = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|", 4)]
        if len(fields) != 5:
            continue
        ids, word, nodes, user, name = fields
        for job_id in expand_job_id(ids):
            rows[job_id] = QueueRow(
                job_id=job_id,
                state=job_state(word),
                reason="",
                nodes="" if nodes == "None assigned" else nodes,
                expected_start="",
                user=user,
                name=name,
            )
    return rows


def expand_nodes(text: str) -> list[str]:
    """Return the nodes that a list of Slurm's stands for; what cannot be read stands for itself.

    >>> expand_nodes("cpu[01-03,7],gpu1")
    ['cpu01', 'cpu02', 'cpu03', 'cpu7', 'gpu1']
    """
    nodes: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        found = re.fullmatch(r"([^\[]*)\[([\d,\-]+)\]", part)
        if not found:
            nodes.append(part)
            continue
        for span in found[2].split(","):
            first, _, last = span.partition("-")
            nodes += [
                f"{found[1]}{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)
            ]
    return nodes


def parse_active(output: str, name: str, since: datetime) -> set[str]:
    """Return the whole jobs of this name in `squeue -h -o %i|%V|%j` that were submitted since, a minute's skew allowed.

    >>> parse_active("7_[0-3]|2026-01-01T10:00:00|a.b.core", "a.b.core", datetime(2026, 1, 1, 9, 59))
    {'7'}
    """
    found = set()
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|", 2)]
        if len(fields) == 3 and fields[2] == name and (number := re.match(r"\d+", fields[0])):
            with contextlib.suppress(ValueError):
                if datetime.fromisoformat(fields[1]) >= since - timedelta(minutes=1):
                    found.add(number[0])
    return found
