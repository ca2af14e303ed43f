"""Doctor's checks of what Slurm says: facts in, lines out; nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hpc_marl.config import ClusterConfig
from hpc_marl.config.durations import duration_s
from hpc_marl.launch.plan import Plan
from hpc_marl.launch.site_survey import Association, Partition, Qos, SiteSurvey
from hpc_marl.site.findings import Line, fail, ok, warn
from hpc_marl.site.probe_jobs import Kind

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")


def command_lines(missing: Sequence[str]) -> Line:
    """Say which of Slurm's commands are not here."""
    if missing:
        return fail(
            "commands",
            f"no {', '.join(missing)} on PATH",
            "run this on a login node, perhaps after `module load slurm`",
        )
    return ok("commands", ", ".join(COMMANDS))


def controller_lines(survey: SiteSurvey) -> list[Line]:
    """Say what answers."""
    version = survey.settings.get("SLURM_VERSION", "?")
    lines = [ok("controller", f"Slurm {version}, cluster {survey.cluster_name}")]
    preempting = survey.settings.get("PreemptType", "preempt/none") != "preempt/none"
    if preempting and "preempt_send_user_signal" not in survey.settings.get("SlurmctldParameters", ""):
        lines.append(
            warn(
                "preemption",
                "preempted jobs are not warned (SlurmctldParameters has no preempt_send_user_signal)",
                "a preempted run goes on from its last checkpoint: keep trainer.checkpoint_interval_s low",
            )
        )
    return lines


def kind_lines(kind: Kind, survey: SiteSurvey) -> Line:
    """Say whether the partition of a kind of node can take its jobs."""
    what = f"partition {kind.partition or '(default)'}"
    setting = "cluster.gpu_partition" if kind.gpus else "cluster.cpu_partition"
    names = ", ".join(one.name for one in survey.partitions) or "none"
    found = _partitions(kind.partition, survey)
    if not found:
        which = "there is no default partition" if kind.partition is None else "there is no such partition"
        return fail(what, f"{which}; there are: {names}", f"set {setting} to one of these")
    if down := [one.name for one in found if not one.is_up]:
        state = found[0].settings.get("State", "?")
        return fail(what, f"{', '.join(down)} is {state}", f"wait, or set {setting} to one of: {names}")
    nodes = list({node.name: node for one in found for node in one.nodes}.values())
    if kind.gpus:
        if not any(node.num_gpus for node in nodes):
            with_gpus = ", ".join(one.name for one in survey.partitions if one.num_gpus) or "none"
            return fail(
                what, "its nodes have no GPUs", f"set {setting} to one that has; those are: {with_gpus}"
            )
        nodes = [node for node in nodes if node.num_gpus]
    available = [node for node in nodes if node.is_available]
    if not available:
        states = ", ".join(sorted({node.state for node in nodes})) or "there are none"
        return fail(what, f"none of its nodes takes jobs: {states}", "wait, or choose another partition")
    detail = f"{len(available)} of {len(nodes)} nodes up, {available[0].cpus} CPUs each"
    if kind.gpus:
        types: dict[str, int] = {}
        for node in available:
            for gpus in node.gpus:
                types[gpus.type] = types.get(gpus.type, 0) + gpus.count
        detail += ", " + ", ".join(f"{count} GPUs {name}".strip() for name, count in types.items())
    return ok(what, detail)


def limit_lines(plan: Plan, cluster: ClusterConfig, survey: SiteSurvey) -> Iterator[Line]:
    """Compare what the plan needs with what the site allows."""
    yield from _time_lines(plan, survey)
    elements = max((len(job.slots) for job in plan.jobs if job.is_array), default=0)
    largest = int(survey.settings.get("MaxArraySize", "1001"))
    if elements and largest == 0:
        yield fail("job arrays", "MaxArraySize is 0", "use cluster.placement=packed or hetjob")
    elif elements:
        split = f", submitted as {-(-elements // largest)} arrays" if elements > largest else ""
        yield ok("job arrays", f"{elements} elements; MaxArraySize {largest}{split}")
    yield from _submit_lines(plan, cluster, survey)


def _time_lines(plan: Plan, survey: SiteSurvey) -> Iterator[Line]:
    for job in plan.jobs:
        limits = [(one.max_time_s, one) for one in _partitions(job.partition, survey)]
        if not limits:
            continue
        longest, partition = max(limits, key=lambda pair: pair[0])
        detail = f"{job.time_limit}; {partition.name} allows {partition.settings.get('MaxTime', 'any')}"
        if duration_s(job.time_limit) > longest:
            yield fail(
                f"time limit {job.role}",
                detail,
                f"set cluster.time_limit to at most {partition.settings['MaxTime']}: a run goes on over many jobs",
            )
        else:
            yield ok(f"time limit {job.role}", detail)


def _submit_lines(plan: Plan, cluster: ClusterConfig, survey: SiteSurvey) -> Iterator[Line]:
    if survey.associations is None:
        yield warn(
            "accounts", "sacctmgr does not answer", "limits on the number of jobs are not known; ask the site"
        )
        return
    account = cluster.directives.get("account")
    account = str(account) if account else survey.default_account
    own = [one for one in survey.associations if one.account == account]
    if not own and survey.settings.get("AccountingStorageEnforce", "").startswith("associations"):
        listed = ", ".join(survey.accounts) or "none"
        yield fail(
            "accounts",
            f"account {account or '(none)'} is not yours; yours are: {listed}",
            "set cluster.directives.account to one of these",
        )
        return
    yield ok("accounts", account or "none needed")
    needed = sum(len(job.slots) if job.is_array else 1 for job in plan.jobs)
    limit, whose = _least_limit(own, cluster, survey.qos or ())
    if limit is None:
        yield ok("number of jobs", f"{needed} (array elements count); no limit is known")
    elif needed > limit:
        yield fail(
            "number of jobs",
            f"{needed} (array elements count); {whose} allows {limit}",
            "raise actors.per_task, or use cluster.placement=packed",
        )
    else:
        yield ok("number of jobs", f"{needed} (array elements count); {whose} allows {limit}")


def _least_limit(
    own: Iterable[Association], cluster: ClusterConfig, qualities: Iterable[Qos]
) -> tuple[int | None, str]:
    limits = [(one.max_submit, f"account {one.account}") for one in own if one.max_submit is not None]
    defaults = [one.default_qos for one in own if one.default_qos] or ["normal"]
    used = str(cluster.directives.get("qos") or defaults[0])
    limits += [
        (qos.max_submit, f"QOS {qos.name}")
        for qos in qualities
        if qos.name == used and qos.max_submit is not None
    ]
    return min(limits, default=(None, ""), key=lambda pair: pair[0] or 0)


def script_lines(roles: str, said: str) -> Line:
    """Say whether sbatch takes a script of the run's."""
    if said:
        return fail(
            f"sbatch {roles}",
            f"refuses the job: {said}",
            "see cluster.directives, core_directives, actor_directives, gpu_request and the workers' resources",
        )
    return ok(f"sbatch {roles}", "takes the job (--test-only)")


def accounting_lines(said: str) -> Line:
    """Say whether sacct works."""
    if said:
        return warn(
            "sacct",
            f"does not answer: {said.splitlines()[0]}",
            "runs do without: what became of a job that squeue has forgotten stays unknown then",
        )
    return ok("sacct", "answers")


def _partitions(name: str | None, survey: SiteSurvey) -> list[Partition]:
    """Return the partitions that a job may name, several of them joined by commas."""
    found = [survey.partition(part) for part in (name.split(",") if name else [None])]
    return [one for one in found if one is not None] if None not in found else []
