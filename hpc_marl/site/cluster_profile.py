"""What to write into a site's profile, given what its Slurm says; values and text only."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from hpc_marl.base.network import is_loopback, resolve_ipv4
from hpc_marl.errors import ConfigError
from hpc_marl.launch.site_survey import Partition, SiteSurvey
from hpc_marl.site.shared_directories import SharedRoot

_DAY_S = 24 * 3600
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_MAX_NODES_RESOLVED = 8


@dataclass(frozen=True)
class SiteProfile:
    """The choices.

    Attributes:
        cpu_partition: None where all partitions have GPUs.
        gpu_partition: None where none has.
        gpu_request: the directive that asks for {gpus} GPUs.
        time_limit: as Slurm writes it.
        interface: a network such as 10.1.0.0/16; None: every address but loopback.
        directives: what jobs need to be taken at all.
    """

    cpu_partition: str | None
    gpu_partition: str | None
    gpu_request: str
    time_limit: str
    interface: str | None
    directives: Mapping[str, str] = field(default_factory=dict)


def choose_profile(survey: SiteSurvey) -> SiteProfile:
    """Choose a profile.

    Raises:
        ConfigError: no partition takes jobs of this user.
    """
    usable = [
        one
        for one in survey.partitions
        if one.is_up
        and one.nodes
        and one.admits(survey.accounts)
        and one.settings.get("RootOnly", "NO") == "NO"
    ]
    if not usable:
        raise ConfigError(
            "no partition is up and open to this user; there are: "
            f"{', '.join(one.name for one in survey.partitions) or 'none'}"
        )
    cpu = _best(survey, [one for one in usable if not one.num_gpus], by_gpus=False)
    gpu = _best(survey, [one for one in usable if one.num_gpus], by_gpus=True)
    chosen = [one for one in (cpu, gpu) if one is not None]
    limit_s = min(_DAY_S, *(one.max_time_s for one in chosen))
    addresses = [node.address for one in chosen for node in one.nodes[:_MAX_NODES_RESOLVED]]
    return SiteProfile(
        cpu_partition=cpu.name if cpu else None,
        gpu_partition=gpu.name if gpu else None,
        gpu_request=_gpu_request(gpu),
        time_limit=duration(limit_s),
        interface=common_network(addresses, own_networks()),
        directives=_directives(survey, chosen),
    )


def _best(survey: SiteSurvey, partitions: Sequence[Partition], *, by_gpus: bool) -> Partition | None:
    """Return the partition to use: of the usual priority tier, with time enough, and the largest."""
    if not partitions:
        return None
    default = survey.default_partition
    # A higher tier preempts other people's jobs; a lower one is for scavengers.
    tier = default.tier if default else min(one.tier for one in partitions)

    def merit(one: Partition) -> tuple[bool, bool, bool, int]:
        size = one.num_gpus if by_gpus else len(one.nodes)
        return one.tier == tier, one.max_time_s >= _DAY_S / 4, one.is_default, size

    return max(partitions, key=merit)


def _gpu_request(partition: Partition | None) -> str:
    types = _by_number(partition.gpu_types) if partition else []
    return f"gres=gpu:{types[0]}:{{gpus}}" if types and types[0] else "gres=gpu:{gpus}"


def _by_number(types: Mapping[str, int]) -> list[str]:
    return sorted(types, key=lambda name: -types[name])


def _directives(survey: SiteSurvey, partitions: Iterable[Partition]) -> dict[str, str]:
    """Return the account and the QOS, where jobs are refused without."""
    needed = {}
    if survey.accounts and survey.default_account not in survey.accounts:
        needed["account"] = survey.accounts[0]
    own = list(dict.fromkeys(qos for one in survey.associations or () for qos in one.qos))
    defaults = {one.default_qos or "normal" for one in survey.associations or ()}
    for partition in partitions:
        allowed = partition.settings.get("AllowQos", "ALL")
        fitting = [qos for qos in own if qos in allowed.split(",")]
        if allowed != "ALL" and fitting and not defaults & set(allowed.split(",")):
            needed["qos"] = fitting[0]
    return needed


def own_networks() -> list[ipaddress.IPv4Network]:
    """Return the IPv4 networks that this machine has an address in, loopback left out."""
    found = [
        ipaddress.IPv4Network(f"{entry.address}/{entry.netmask}", strict=False)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name == "AF_INET" and entry.netmask and not is_loopback(entry.address)
    ]
    return list(dict.fromkeys(found))


def common_network(hosts: Iterable[str], networks: Sequence[ipaddress.IPv4Network]) -> str | None:
    """Return which of this machine's networks all the nodes are in, None if there is none.

    Args:
        hosts: host names or addresses of nodes.
        networks: of this machine.
    """
    found: set[ipaddress.IPv4Network] = set()
    for host in hosts:
        try:
            addresses = resolve_ipv4(host)
        except ConfigError:
            return None
        fitting = {net for net in networks for address in addresses if ipaddress.ip_address(address) in net}
        found = found & fitting if found else fitting
        if not found:
            return None
    return str(max(found, key=lambda net: net.prefixlen)) if found else None


def duration(seconds: float) -> str:
    """Return seconds as Slurm writes them.

    >>> duration(86400), duration(2 * 86400 + 90)
    ('24:00:00', '2-00:01:30')
    """
    days, rest = divmod(int(seconds), _DAY_S)
    if days == 1 and not rest:
        return "24:00:00"
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def profile_text(name: str, survey: SiteSurvey, profile: SiteProfile, root: SharedRoot) -> str:
    """Return the YAML file with what was found as comments."""
    lines = [
        f"# Site {name}: Slurm {survey.settings.get('SLURM_VERSION', '?')}, cluster {survey.cluster_name}. Written by",
        f"# `hpc-marl cluster init`; change what is wrong, then test it: `hpc-marl doctor cluster={name}`.",
        "# All settings there are: ClusterConfig in hpc_marl/config/cluster.py.",
        "kind: slurm",
        "",
        *_partition_lines(survey, profile),
        "",
        f"# {root.remark}",
        f"shared_root: {scalar(root.spelling)}",
        "",
        *_network_lines(survey, profile),
        "",
        *_directive_lines(survey, profile),
    ]
    if modules := os.environ.get("LOADEDMODULES"):
        listed = " ".join(modules.split(":"))
        lines += ["", "# Loaded when this was written:", f"# setup: [{scalar(f'module load {listed}')}]"]
    return "\n".join(lines) + "\n"


def _partition_lines(survey: SiteSurvey, profile: SiteProfile) -> list[str]:
    lines = ["# Partitions (nodes, CPUs and memory of the first, GPUs, longest job, priority tier):"]
    for one in survey.partitions:
        first = one.nodes[0] if one.nodes else None
        size = f"{first.cpus} CPUs, {first.memory_mb} MB" if first else "no nodes"
        gpus = ", ".join(f"{count} GPUs {kind}".strip() for kind, count in one.gpu_types.items()) or "no GPUs"
        star = " (default)" if one.is_default else ""
        limit = one.settings.get("MaxTime", "?")
        lines.append(f"#   {one.name}{star}: {len(one.nodes)} x {size}; {gpus}; {limit}; tier {one.tier}")
    lines.append(f"cpu_partition: {scalar(profile.cpu_partition)}")
    lines.append(f"gpu_partition: {scalar(profile.gpu_partition)}")
    gpu = survey.partition(profile.gpu_partition) if profile.gpu_partition else None
    if gpu is not None and len(gpu.gpu_types) > 1:
        lines.append(f"# GPU types: {', '.join(_by_number(gpu.gpu_types))}; gres=gpu:{{gpus}} takes any.")
    lines.append(f"gpu_request: {scalar(profile.gpu_request)}")
    lines.append(f"time_limit: {scalar(profile.time_limit)}")
    return lines


def _network_lines(survey: SiteSurvey, profile: SiteProfile) -> list[str]:
    others = [str(net) for net in own_networks() if str(net) != profile.interface]
    also = f" This machine is also in {', '.join(others)}." if others else ""
    if profile.interface:
        lines = [
            f"# The network of the nodes' addresses in Slurm.{also}",
            f"interface: {scalar(profile.interface)}",
        ]
    else:
        lines = [
            "# No network of this machine holds the nodes' addresses: workers listen at all of theirs.",
            f"interface: null  #{also or ' or a network such as 10.1.0.0/16'}",
        ]
    ports = survey.settings.get("SrunPortRange", "0-0").split("-")
    if ports not in (["0", "0"], [""]) and len(ports) == 2:
        lines.append(
            "# Slurm's own connections keep to these ports, so a firewall may let through no others."
        )
        lines.append(f"port_range: [{ports[0]}, {ports[1]}]")
    return lines


def _directive_lines(survey: SiteSurvey, profile: SiteProfile) -> list[str]:
    lines = []
    if survey.associations is None:
        lines.append("# No accounting answers (sacctmgr): accounts and qualities of service are not known.")
    else:
        lines.append(f"# Accounts of yours: {', '.join(survey.accounts) or 'none'}; QOS: {_own_qos(survey)}.")
    memory = survey.settings.get("DefMemPerCPU") or survey.settings.get("DefMemPerNode")
    if memory is None or memory.startswith(("UNLIMITED", "0")):
        lines.append("# No default memory: without memory_mb of its workers a job may take all of a node's.")
    else:
        what = "CPU" if "DefMemPerCPU" in survey.settings else "node"
        lines.append(f"# Memory without memory_mb of workers: {memory} MB per {what}.")
    given = {"account": "name", "qos": "name"} | dict(profile.directives)
    text = ", ".join(f"{key}: {scalar(value)}" for key, value in profile.directives.items())
    if text:
        lines.append(f"directives: {{{text}}}")
    else:
        lines.append(f"# directives: {{account: {given['account']}, qos: {given['qos']}}}")
    return lines


def _own_qos(survey: SiteSurvey) -> str:
    names = list(dict.fromkeys(qos for one in survey.associations or () for qos in one.qos))
    limits = {one.name: one for one in survey.qos or ()}
    described = []
    for name in names:
        qos = limits.get(name)
        most = f" (at most {qos.max_submit} jobs)" if qos and qos.max_submit is not None else ""
        described.append(name + most)
    return ", ".join(described) or "none"


def scalar(value: str | None) -> str:
    """Return a value as YAML writes it, quoted where a plain one would be read as something else.

    >>> scalar("cpu"), scalar("24:00:00"), scalar(None), scalar("no")
    ('cpu', '"24:00:00"', 'null', '"no"')
    """
    if value is None:
        return "null"
    return value if _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS else json.dumps(value)
