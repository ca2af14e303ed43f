"""Doctor's checks of nodes: what probes have found there, compared with the login node; facts in, lines out."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence

from hpc_marl.launch.slurm_queue import QueueRow
from hpc_marl.site.exchange import Reach
from hpc_marl.site.findings import Line, fail, ok, warn
from hpc_marl.site.machine_facts import GpuFacts, NodeFacts

_ENOUGH_FILES = 4096
_LITTLE_SPACE, _NO_SPACE = 10 * 2**30, 2**28
_FEW_FILES = 10_000
_SLOW_VISIBILITY_S = 3.0
_CLOCK_TOLERANCE_S = 1.0
_LOCAL_TYPES = ("tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs")
_NO_PYTHON = re.compile(r"(execve\(\)|command not found|No such file or directory|Permission denied)")


def python_line(name: str, node: NodeFacts, login: NodeFacts) -> Line:
    """Compare the interpreters and packages."""
    what = f"python {name}"
    other = {
        package: f"{package} {node.versions.get(package) or 'missing'} (here {version or 'missing'})"
        for package, version in login.versions.items()
        if node.versions.get(package) != version
    }
    if other:
        return fail(
            what,
            f"{node.executable} on {node.host} has {', '.join(other.values())}",
            "use one environment on all machines: cluster.python and cluster.setup say which nodes use",
        )
    shown = ", ".join(f"{package} {version}" for package, version in node.versions.items())
    if node.executable != login.executable:
        return warn(
            what,
            f"{node.executable}, here {login.executable}: {shown}",
            "equal versions, but two environments: update them together",
        )
    if node.package_directory != login.package_directory:
        return fail(
            what,
            f"hpc_marl comes from {node.package_directory}, here from {login.package_directory}",
            "start from the same directory, or install the package",
        )
    return ok(what, shown)


def silence_line(name: str, row: QueueRow | None, output: str | None, seen: bool | None, path: str) -> Line:
    """Say why a probe whose job has ended never said anything.

    Args:
        name: of the probe.
        row: what the queue says of its job.
        output: what the job has printed; None: there is no output file.
        seen: whether a node of the partition sees the visit's directory; None: not known.
        path: that directory.
    """
    state = row.state.value.lower() if row and row.state else "gone"
    node = row.nodes if row and row.nodes else "its node"
    if seen is False or (output is None and seen is None):
        return fail(
            f"shared root {name}",
            f"{path} as {node} sees it is not the one that this machine sees",
            "set cluster.shared_root to a directory on a filesystem that all nodes share; "
            "`hpc-marl cluster init` looks for one",
        )
    said = output or "nothing"
    tail = "\n".join(said.splitlines()[-6:])
    if "No module named" in said:
        missing = said.rpartition("No module named")[2].splitlines()[0].strip(" '\"")
        return fail(
            f"python {name}",
            f"the interpreter on {node} has no module {missing}",
            "install the package there, or set cluster.python and cluster.setup",
        )
    if _NO_PYTHON.search(said):
        return fail(
            f"python {name}",
            f"the interpreter does not start on {node}:\n{tail}",
            "set cluster.python to one that all nodes have, or load it by cluster.setup",
        )
    return fail(f"probe {name}", f"its job is {state} and said:\n{tail}", "see what it said")


def waiting_line(name: str, row: QueueRow | None, timeout_s: float) -> Line:
    """Say what a probe is waiting for that has not begun in time."""
    if row is None or row.state is None or not row.reason:
        detail = (
            f"runs since {timeout_s:g} s and has said nothing" if row else "the queue does not know its job"
        )
        return fail(f"probe {name}", detail, "try again; see whether the node is well")
    start = f", expected to start {row.expected_start}" if row.expected_start else ""
    return fail(
        f"queue {name}",
        f"still pending after {timeout_s:g} s: {row.reason}{start}",
        "wait longer by --timeout SECONDS, or choose another partition",
    )


def limits_line(name: str, node: NodeFacts) -> Line:
    """Look at what a process may use on a node."""
    what = f"limits {name}"
    memory = "no memory limit" if node.memory_limit_mb is None else f"memory {node.memory_limit_mb} MB"
    detail = f"{node.open_files_soft} of {node.open_files_hard} open files, {memory}, {node.cpus} CPUs usable"
    if node.open_files_hard < _ENOUGH_FILES:
        return warn(
            what,
            detail,
            f"a trainer of hundreds of actors needs {_ENOUGH_FILES} open files: raise `ulimit -Hn` before submitting",
        )
    return ok(what, detail)


def gpu_lines(name: str, num_wanted: int, gpus: GpuFacts) -> Iterator[Line]:
    """Compare the GPUs that Slurm gave with those that torch sees."""
    what = f"GPU {name}"
    given = f"CUDA_VISIBLE_DEVICES={gpus.visible or '(unset)'}"
    if gpus.problem:
        yield fail(f"torch {name}", f"does not load: {gpus.problem}", "install torch for these nodes")
    elif not num_wanted:
        return
    elif gpus.count >= num_wanted:
        yield ok(what, f"torch sees {gpus.count}; {given}")
    elif not gpus.cuda:
        yield warn(
            what,
            f"this torch is built for CPUs; {given}",
            "install a torch with CUDA to use GPUs",
        )
    else:
        yield fail(
            what,
            f"torch for CUDA {gpus.cuda} sees {gpus.count} GPUs; {given}",
            "see cluster.gpu_request, and whether the driver of the node is new enough for this CUDA",
        )


def storage_lines(facts: NodeFacts, name: str, path: str) -> Iterator[Line]:
    """Look at the filesystem of the shared root as one machine mounts it."""
    what = f"filesystem {name}"
    options = facts.mount_options.split(",")
    if facts.mount_type.startswith(_LOCAL_TYPES):
        yield warn(
            what,
            f"{path} is on {facts.mount_type}, which machines do not share",
            "set cluster.shared_root to a directory on a network filesystem",
        )
    elif facts.mount_type.startswith("nfs") and "nocto" in options:
        yield fail(
            what,
            f"{facts.mount_type} mounted nocto: what one machine writes others see up to a minute late",
            "ask for a mount without nocto, or choose another cluster.shared_root",
        )
    elif slow := [option for option in options if option.startswith(("acdirmin", "acregmin", "actimeo"))]:
        yield ok(
            what, f"{facts.mount_type} ({', '.join(slow)}); opening a directory asks the server all the same"
        )
    else:
        yield ok(what, facts.mount_type)


def space_lines(facts: NodeFacts, path: str, over_quota: str) -> Iterator[Line]:
    """Look at the room left for runs."""
    files = "" if facts.free_files is None else f", {facts.free_files} files"
    detail = f"{facts.free_bytes / 2**30:.1f} GiB{files} free in {path}"
    if over_quota:
        yield warn("quota", over_quota, "remove files, or choose another cluster.shared_root")
    if facts.free_bytes < _NO_SPACE:
        yield fail("space", detail, "make room, or choose another cluster.shared_root")
    elif facts.free_bytes < _LITTLE_SPACE or (facts.free_files is not None and facts.free_files < _FEW_FILES):
        yield warn("space", detail, "a run writes checkpoints and logs: make room")
    else:
        yield ok("space", detail)


def visibility_line(
    name: str, there_s: Sequence[float], round_trips_s: Sequence[float], offset_s: float | None
) -> Line:
    """Say how long names take to be seen.

    Args:
        name: of the probe.
        there_s: from adding a name here to the node's seeing it, by two clocks.
        round_trips_s: until its answer was seen here.
        offset_s: the node's clock minus this one's; None where it is not known.
    """
    what = f"names login<->{name}"
    median, worst = statistics.median(round_trips_s), max(round_trips_s)
    detail = f"round trip {1000 * median:.0f} ms, at most {1000 * worst:.0f} ms"
    if offset_s is not None:
        there = statistics.median(there_s) - offset_s
        detail = f"there {1000 * there:.0f} ms, back {1000 * (median - there):.0f} ms (at most {1000 * worst:.0f} ms)"
    if worst > _SLOW_VISIBILITY_S:
        return warn(
            what,
            detail,
            "starting and finding workers takes as long; a directory on another filesystem may be quicker",
        )
    return ok(what, detail)


def reach_line(source: str, target: str, reach: Reach, facts: NodeFacts, needed: bool) -> Line:
    """Say by which address one machine reaches another.

    Args:
        source: who called.
        target: who should have answered.
        reach: what became of it.
        facts: of the target.
        needed: whether runs need this direction.
    """
    what = f"{source} -> {target}"
    answered = [one for one in reach.addresses if one.answered]
    silent = [f"{one.address}:{one.port}" for one in reach.addresses if not one.answered]
    if answered:
        best = min(answered, key=lambda one: one.round_trip_s)
        also = f"; silent: {', '.join(silent)}" if silent else ""
        return ok(what, f"{best.address}:{best.port} answers in {1000 * best.round_trip_s:.1f} ms{also}")
    if not needed:
        tried = ", ".join(silent) or "it listens nowhere"
        return ok(what, f"not reachable ({tried}), but no run needs it")
    if facts.network_problem:
        return fail(
            what,
            facts.network_problem,
            "set cluster.interface to a network (10.1.0.0/16) or null, see port_range",
        )
    problem = next(
        (one.problem for one in reach.addresses if one.problem), "nothing is published"
    ).splitlines()[0]
    has = ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in sorted(facts.addresses.items()))
    return fail(
        what,
        f"no answer at {', '.join(silent) or 'any address'}: {problem}\n{facts.host} has: {has}",
        "set cluster.interface to the network that both are in, and cluster.port_range to ports that are open",
    )


def clock_line(name: str, offset_s: float, bound_s: float) -> Line:
    """Compare clocks; `bound_s` is how wrong the offset may be."""
    detail = f"{1000 * offset_s:+.0f} ms against this one (within {1000 * bound_s:.1f} ms)"
    if abs(offset_s) - bound_s > _CLOCK_TOLERANCE_S:
        return warn(f"clock {name}", detail, "logs of machines do not line up; tell the site that NTP is off")
    return ok(f"clock {name}", detail)
