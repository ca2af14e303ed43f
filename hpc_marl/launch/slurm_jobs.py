"""SlurmJobs: the JobService of a Slurm cluster.

submit --submitit, sbatch--> jobs; launch.json remembers them, so that another controller can take over
poll   --one squeue a minute, in the background--> reports; sacct once for a job that squeue forgot
cancel --one scancel--> the rest is seen by poll
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from hpc_marl.base.jobs import JobReport, JobState
from hpc_marl.base.launch_record import JobRecord, add_job, read_launch_record
from hpc_marl.base.permissions import make_private_directory
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import QueueBusyError
from hpc_marl.launch.plan import Plan
from hpc_marl.launch.sbatch_directives import job_directives
from hpc_marl.launch.sbatch_script import Submission, make_submissions, script_text
from hpc_marl.launch.slurm_commands import BUSY, run_command, user_name
from hpc_marl.launch.slurm_queue import expand_nodes, parse_active
from hpc_marl.launch.slurm_watch import QueueWatch

_DEFAULT_MAX_ARRAY_SIZE = 1001
# Before each further attempt where Slurm is busy.
_RETRY_DELAYS_S = (2.0, 5.0, 10.0)

_log = logging.getLogger("hpc_marl.launch")


@dataclass(frozen=True)
class _Place:
    """Where a slot is filled: the newest submission that lists it, and its position there."""

    record: JobRecord
    position: int

    @property
    def job_id(self) -> str:
        return f"{self.record.job_id}_{self.position}" if self.record.is_array else self.record.job_id


class SlurmJobs:
    """Submits, watches and cancels a run's jobs; see `hpc_marl.base.jobs.JobService`.

    Jobs that launch.json holds already are taken over. Only the holder of the controller's lease may have one.

    Args:
        config: of the experiment.
        plan: which job a slot belongs to.
        directory: of the run; launch.json must be there.
        core_dependency: of the core job's first submission, as for `sbatch --dependency`; "" for none.
        clock: seconds, never going back.
        sleep: waits some seconds before a submission is tried again.

    Attributes:
        plan: may be replaced by a larger one.

    Raises:
        ConfigError: there is no launch.json, or a directive of the site's cannot stand in a script.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Plan,
        directory: RunDirectory,
        *,
        core_dependency: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.plan = plan
        self._cluster = config.cluster
        self._directory = directory
        self._core_dependency = core_dependency
        self._sleep = sleep
        self._working_directory = os.getcwd()
        self._max_array_size: int | None = None
        self._places: dict[int, _Place] = {}
        self._watch = QueueWatch(user_name(), self._cluster.query_interval_s, clock)
        for record in read_launch_record(directory).jobs:
            self._remember(record)
        self._watch.ask_in(0.0)

    def submit(self, slots: Iterable[int]) -> None:
        """See JobService. What was accepted before a refusal stays submitted and remembered."""
        self._make_directories()
        submissions = make_submissions(self.plan, slots, self._array_limit(), self._cluster.array_parallelism)
        for submission in submissions:
            self._submit(submission)
            self._watch.ask_in(3.0)

    def poll(self) -> None:
        """See JobService."""
        self._watch.poll()
        if stuck := self._watch.take_stuck():
            self._scancel(stuck)

    def report(self, slot: int) -> JobReport | None:
        """See JobService."""
        place = self._places.get(slot)
        if place is None:
            return None
        seen = self._watch.report(place.job_id)
        if place.record.is_array or not seen.node:
            return seen
        nodes = expand_nodes(seen.node)
        if len(nodes) != len(place.record.slots):
            return seen
        return JobReport(seen.job_id, seen.state, seen.reason, nodes[place.position], seen.expected_start)

    def cancel(self, slots: Iterable[int]) -> None:
        """See JobService. Of a job that is no array, one slot cannot end alone: all of them do."""
        if ids := self._ids_to_cancel(set(slots)):
            self._scancel(ids)

    def close(self) -> None:
        """See JobService."""
        self._watch.close()

    def _scancel(self, ids: list[str]) -> None:
        answer = run_command(["scancel", *ids])
        for delay in _RETRY_DELAYS_S:
            if answer.is_ok or not BUSY.search(answer.error):
                break
            self._sleep(delay)
            answer = run_command(["scancel", *ids])
        if not answer.is_ok:
            _log.warning("scancel %s said: %s", " ".join(ids), answer.error or "nothing")
        self._watch.ask_in(3.0)

    def _make_directories(self) -> None:
        # Slurm fails a job whose output it cannot write.
        for directory in (self._directory.logs / "jobs", self._directory.job_scripts):
            make_private_directory(directory)

    def _array_limit(self) -> int:
        if not any(job.is_array for job in self.plan.jobs):
            return _DEFAULT_MAX_ARRAY_SIZE
        if self._max_array_size is None:
            answer = run_command(["scontrol", "show", "config"])
            self._max_array_size = max_array_size(answer.output)
        return self._max_array_size

    def _submit(self, submission: Submission) -> None:
        text = script_text(
            submission,
            self._cluster,
            self._directory,
            working_directory=self._working_directory,
            dependency=self._dependency(submission),
        )
        job_id = self._sbatch(text, self._job_name(submission.jobs[0].role))
        _log.info("job %s submitted for slots %s", job_id, submission.slots)
        for i, job in enumerate(submission.jobs):
            record = JobRecord(
                job_id=f"{job_id}+{i}" if submission.is_heterogeneous else job_id,
                role=job.role,
                slots=[slot.index for slot in job.slots],
                is_array=job.is_array,
                submitted=datetime.now().astimezone().isoformat(timespec="seconds"),
                script=f"{self._directory.job_scripts.name}/{job_id}.sbatch",
            )
            add_job(self._directory, record)
            self._remember(record)

    def _sbatch(self, text: str, name: str) -> str:
        # Not at the top: a controller that only watches does without submitit.
        from hpc_marl.launch.slurm_submit import submit_script

        since = datetime.now()
        for delay in (*_RETRY_DELAYS_S, None):
            try:
                return submit_script(text, self._directory.job_scripts)
            except QueueBusyError as error:
                if delay is None:
                    raise
                _log.warning("%s; trying again in %g s", error, delay)
                self._sleep(delay)
            # What timed out may have been accepted: twice the same job would go unwatched.
            if found := self._accepted(name, since):
                (self._directory.job_scripts / f"{found}.sbatch").write_text(text)
                return found
        raise AssertionError("the last attempt returns or raises")

    def _accepted(self, name: str, since: datetime) -> str | None:
        """Return the id of a job of this name that came into the queue since, and is none of those remembered."""
        known = {record.job_id.partition("+")[0] for record in read_launch_record(self._directory).jobs}
        answer = run_command(["squeue", "-h", "-u", user_name(), "-o", "%i|%V|%j"])
        found = parse_active(answer.output, name, since) - known if answer.is_ok else set()
        return max(found, key=int, default=None)

    def _dependency(self, submission: Submission) -> str:
        is_first = not any(slot in self._places for slot in submission.slots)
        if not is_first:
            return ""
        job = submission.jobs[0]
        if job.role == "core":
            return self._core_dependency
        for slot in self.plan.jobs[0].slots:
            report = self.report(slot.index)
            if report is not None and report.state is JobState.PENDING:
                return f"after:{report.job_id}"
        return ""

    def _job_name(self, role: str) -> str:
        """Return the name that jobs of this role have in the queue; "" where the site removes it."""
        job = next((job for job in self.plan.jobs if job.role == role), self.plan.jobs[0])
        directives = job_directives(
            job, self._cluster, self._directory, working_directory=self._working_directory
        )
        return str(directives.get("job-name", ""))

    def _remember(self, record: JobRecord) -> None:
        for position, slot in enumerate(record.slots):
            self._places[slot] = _Place(record, position)
        ids = {_Place(record, position).job_id for position in range(len(record.slots))}
        self._watch.add(ids, record.name or self._job_name(record.role))
        self._watch.keep({place.job_id for place in self._places.values()})

    def _ids_to_cancel(self, slots: set[int]) -> list[str]:
        places = [self._places[slot] for slot in sorted(slots & set(self._places))]
        places = [place for place in places if not self._watch.report(place.job_id).state.is_final]
        ids: dict[str, None] = {}
        for place in places:
            record = place.record
            is_whole_array = record.is_array and set(record.slots) <= slots
            ids[record.job_id if is_whole_array else place.job_id] = None
        leaders = {job_id.partition("+")[0] for job_id in ids if job_id.endswith("+0")}
        # The first component's end is the whole heterogeneous job's, and while it waits nothing else can be cancelled.
        return list(
            dict.fromkeys(
                leader if (leader := job_id.partition("+")[0]) in leaders else job_id for job_id in ids
            )
        )


def max_array_size(config: str) -> int:
    """Return MaxArraySize from what `scontrol show config` prints; Slurm's default where it does not say.

    >>> max_array_size("MaxArraySize            = 2001")
    2001
    """
    for line in config.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return int(value)
    return _DEFAULT_MAX_ARRAY_SIZE
