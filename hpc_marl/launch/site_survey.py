"""What a site's Slurm is like: version, limits, partitions, nodes, and what this user may use.

survey_site()     asks scontrol, sinfo and, where there is accounting, sacctmgr: six short commands
parse_...         text of those commands -> values; fixed formats, because JSON differs from version to version
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpc_marl.config.durations import duration_s
from hpc_marl.errors import LaunchError
from hpc_marl.launch.slurm_commands import run_command, user_name

SINFO_NODES = ("sinfo", "-h", "-N", "-o", "%R|%N|%o|%T|%c|%m|%G")
ASSOCIATION_FIELDS = "account,partition,qos,defaultqos,maxjobs,maxsubmit"
QOS_FIELDS = "name,maxjobspu,maxsubmitpu,maxwall"
_PAIR = re.compile(r"(?:^|\s)(\w+)=(\S*)")
# A node in one of these will take no job, now or soon; a `*` behind any state means that it does not answer.
_DOWN = ("down", "drained", "draining", "fail", "maint", "unknown", "power", "reboot", "inval", "future")


@dataclass(frozen=True)
class Gpus:
    """GPUs of a node as one generic resource names them.

    Attributes:
        type: such as `a100`; "" where the site has none.
        count: of this type.
    """

    type: str
    count: int


@dataclass(frozen=True)
class Node:
    """A node as one partition has it.

    Attributes:
        name: Slurm's name.
        address: where Slurm reaches it: a host name or an IP address.
        state: such as `idle` or `down*`, in lower case.
        cpus: CPUs.
        memory_mb: memory in MB.
        gpus: by type.
    """

    name: str
    address: str
    state: str
    cpus: int
    memory_mb: int
    gpus: tuple[Gpus, ...] = ()

    @property
    def is_available(self) -> bool:
        """Whether it takes jobs, now or when others have ended."""
        return not self.state.endswith("*") and not self.state.startswith(_DOWN)

    @property
    def num_gpus(self) -> int:
        """GPUs of all types."""
        return sum(gpus.count for gpus in self.gpus)


@dataclass(frozen=True)
class Partition:
    """A partition.

    Attributes:
        name: as for --partition.
        settings: what `scontrol show partition` says, in its words: MaxTime, PriorityTier, State ...
        nodes: of this partition.
    """

    name: str
    settings: Mapping[str, str]
    nodes: tuple[Node, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether jobs that name none go here."""
        return self.settings.get("Default") == "YES"

    @property
    def is_up(self) -> bool:
        """Whether it starts jobs."""
        return self.settings.get("State", "UP") == "UP"

    @property
    def tier(self) -> int:
        """Priority tier; a higher one may preempt a lower one."""
        return int(self.settings.get("PriorityTier", "1"))

    @property
    def max_time_s(self) -> float:
        """Longest wall time in seconds, infinite where there is no limit."""
        return duration_s(self.settings.get("MaxTime", "UNLIMITED"))

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.num_gpus for node in self.nodes)

    @property
    def gpu_types(self) -> dict[str, int]:
        """How many GPUs there are of each type."""
        found: dict[str, int] = {}
        for node in self.nodes:
            for gpus in node.gpus:
                found[gpus.type] = found.get(gpus.type, 0) + gpus.count
        return found

    def admits(self, accounts: Sequence[str]) -> bool:
        """Whether one of these accounts may submit here; no accounts are known: whether any may."""
        allowed, denied = (self.settings.get(key, "") for key in ("AllowAccounts", "DenyAccounts"))
        if not accounts:
            return True
        if allowed not in ("", "ALL"):
            return bool(set(accounts) & set(allowed.split(",")))
        return bool(set(accounts) - set(denied.split(",")))


@dataclass(frozen=True)
class Association:
    """What a user may do by one account, in sacctmgr's words; "" where nothing is said."""

    account: str
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""
    max_jobs: int | None = None
    max_submit: int | None = None


@dataclass(frozen=True)
class Qos:
    """Limits of a quality of service for one user; None: none."""

    name: str
    max_jobs: int | None = None
    max_submit: int | None = None
    max_wall: str = ""


@dataclass(frozen=True)
class SiteSurvey:
    """All that was found.

    Attributes:
        settings: what `scontrol show config` says, in its words.
        partitions: those this user sees.
        associations: None where sacctmgr does not answer.
        default_account: "" where there is none.
        qos: None where sacctmgr does not answer.
    """

    settings: Mapping[str, str]
    partitions: tuple[Partition, ...]
    associations: tuple[Association, ...] | None = None
    default_account: str = ""
    qos: tuple[Qos, ...] | None = field(default=None)

    @property
    def cluster_name(self) -> str:
        """Name of the cluster."""
        return self.settings.get("ClusterName", "cluster")

    @property
    def accounts(self) -> list[str]:
        """Accounts that this user may use, the default one first."""
        names = dict.fromkeys(one.account for one in self.associations or ())
        return sorted(names, key=lambda name: name != self.default_account)

    @property
    def default_partition(self) -> Partition | None:
        """Where jobs go that name no partition."""
        return next((one for one in self.partitions if one.is_default), None)

    def partition(self, name: str | None) -> Partition | None:
        """Return a partition by name, the default one for None; None where there is no such partition."""
        if name is None:
            return self.default_partition
        return next((one for one in self.partitions if one.name == name), None)


def survey_site() -> SiteSurvey:
    """Ask this machine's Slurm.

    Raises:
        LaunchError: its commands are not here, or the controller does not answer.
    """
    missing = [name for name in ("sinfo", "scontrol", "sbatch") if shutil.which(name) is None]
    if missing:
        raise LaunchError(
            f"no {', '.join(missing)} on this machine; run this on a login node of a Slurm cluster, "
            "perhaps after `module load slurm`"
        )
    settings = parse_settings(ask(["scontrol", "show", "config"]))
    partitions = parse_partitions(ask(["scontrol", "-o", "show", "partition"]), ask(SINFO_NODES))
    user = user_name()
    try:
        associations = ask(
            ["sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={ASSOCIATION_FIELDS}"]
        )
        default = ask(["sacctmgr", "-nP", "show", "user", user, "format=defaultaccount"])
        qos = ask(["sacctmgr", "-nP", "show", "qos", f"format={QOS_FIELDS}"])
    except LaunchError:
        return SiteSurvey(settings, partitions)
    return SiteSurvey(
        settings,
        partitions,
        parse_associations(associations),
        default.strip().partition("\n")[0],
        parse_qos(qos),
    )


def ask(command: Sequence[str], timeout_s: float = 30.0) -> str:
    """Run a command of Slurm's and return what it printed.

    Raises:
        LaunchError: it is not there, fails, or does not end in time; the message holds what it said.
    """
    answer = run_command(command, timeout_s)
    if not answer.is_ok:
        said = answer.error or answer.output.strip() or "it said nothing"
        raise LaunchError(f"{' '.join(command[:3])} failed: {said}")
    return answer.output


def parse_settings(text: str) -> dict[str, str]:
    """Parse `scontrol show config`.

    >>> parse_settings("Configuration data as of ...\\nClusterName             = lab\\nMaxArraySize   = 1001\\n")
    {'ClusterName': 'lab', 'MaxArraySize': '1001'}
    """
    pairs = (line.partition(" = ") for line in text.splitlines() if " = " in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def parse_partitions(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """Parse `scontrol -o show partition` and what `SINFO_NODES` prints."""
    of_partition: dict[str, list[Node]] = {}
    for line in nodes.splitlines():
        parts = line.split("|")
        if len(parts) != 7:
            continue
        name, node, address, state, cpus, memory, gres = parts
        of_partition.setdefault(name, []).append(
            Node(node, address, state.lower(), _number(cpus), _number(memory), parse_gpus(gres))
        )
    records = [dict(_PAIR.findall(line)) for line in partitions.splitlines()]
    return tuple(
        Partition(one["PartitionName"], one, tuple(of_partition.get(one["PartitionName"], ())))
        for one in records
        if "PartitionName" in one
    )


def parse_gpus(gres: str) -> tuple[Gpus, ...]:
    """Return the GPUs among generic resources as sinfo writes them.

    >>> parse_gpus("gpu:a100:4(S:0-1),lustre:1,gpu:2"), parse_gpus("(null)"), parse_gpus("gpu")
    ((Gpus(type='a100', count=4), Gpus(type='', count=2)), (), (Gpus(type='', count=1),))
    """
    found = []
    for resource in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *parts = resource.split(":")
        if name == "gpu":
            count = _number(parts[-1]) if parts and parts[-1].isdigit() else 1
            kind = parts[0] if parts and not parts[0].isdigit() else ""
            found.append(Gpus(kind, count))
    return tuple(found)


def parse_associations(text: str) -> tuple[Association, ...]:
    """Parse sacctmgr's associations with the fields `ASSOCIATION_FIELDS`."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 5]
    return tuple(
        Association(
            account, partition, tuple(filter(None, qos.split(","))), default, _limit(jobs), _limit(submit)
        )
        for account, partition, qos, default, jobs, submit in rows
    )


def parse_qos(text: str) -> tuple[Qos, ...]:
    """Parse sacctmgr's qualities of service with the fields `QOS_FIELDS`."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return tuple(Qos(name, _limit(jobs), _limit(submit), wall) for name, jobs, submit, wall in rows)


def _number(text: str) -> int:
    """Return the number that a text begins with, such as 8 of `8+`."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _limit(text: str) -> int | None:
    return int(text) if text.isdigit() else None
