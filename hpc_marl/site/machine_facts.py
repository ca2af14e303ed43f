"""What `hpc-marl doctor` asks of a machine: its Python, its limits, its view of the shared directory, its GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from hpc_marl.base.mounts import mount_of
from hpc_marl.base.network import interface_addresses
from hpc_marl.launch.slurm_commands import run_command

PACKAGES = ("hpc-marl", "numpy", "torch", "pyzmq", "msgspec")
_UNLIMITED_BYTES = 1 << 60


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, as the interpreter there sees it."""

    host: str
    node: str = ""
    """Slurm's name of it; "" on the login node."""
    executable: str = ""
    versions: dict[str, str] = {}
    """Of Python and of `PACKAGES`; "" for one that is not there."""
    package_directory: str = ""
    """Where this package is loaded from."""
    mount_type: str = ""
    """Filesystem that holds the shared directory."""
    mount_options: str = ""
    free_bytes: int = 0
    free_files: int | None = None
    """Files that can be made on it; None where it has no such limit."""
    addresses: dict[str, list[str]] = {}
    """IPv4 addresses of every interface."""
    listens_at: list[str] = []
    """Addresses that workers listen at here."""
    port: int = 0
    network_problem: str = ""
    """Why they cannot."""
    open_files_soft: int = 0
    open_files_hard: int = 0
    memory_limit_mb: int | None = None
    """What the job's cgroup allows; None for no limit."""
    cpus: int = 0
    """CPUs that this process may use."""


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of a job."""

    visible: str = ""
    """CUDA_VISIBLE_DEVICES."""
    count: int = 0
    """What torch sees."""
    cuda: str = ""
    """The CUDA that torch was built for; "" for none."""
    problem: str = ""


def gather_facts(
    directory: Path, listens_at: tuple[str, ...] = (), port: int = 0, network_problem: str = ""
) -> NodeFacts:
    """Return the facts of this machine.

    Args:
        directory: on the shared filesystem.
        listens_at: addresses that were bound here.
        port: at each of them.
        network_problem: why none was bound.
    """
    kind, options = mount_of(directory)
    status = os.statvfs(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NodeFacts(
        host=socket.gethostname(),
        node=os.environ.get("SLURMD_NODENAME", ""),
        executable=sys.executable,
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        package_directory=str(Path(__file__).resolve().parents[1]),
        mount_type=kind,
        mount_options=options,
        free_bytes=status.f_bavail * status.f_frsize,
        free_files=status.f_favail if status.f_files else None,
        addresses=interface_addresses(),
        listens_at=list(listens_at),
        port=port,
        network_problem=network_problem,
        open_files_soft=soft,
        open_files_hard=hard,
        memory_limit_mb=memory_limit_mb(),
        cpus=len(os.sched_getaffinity(0)),
    )


def gather_gpu_facts() -> GpuFacts:
    """Return what torch sees of this job's GPUs; imports torch, which takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    try:
        import torch

        return GpuFacts(
            visible=visible, count=torch.cuda.device_count(), cuda=getattr(torch.version, "cuda", None) or ""
        )
    except (ImportError, OSError, RuntimeError) as error:
        return GpuFacts(visible=visible, problem=str(error).strip() or type(error).__name__)


def memory_limit_mb(root: Path = Path("/")) -> int | None:
    """Return the least memory limit of this process's cgroups in MB, None where there is none.

    Args:
        root: where /proc and /sys are.
    """
    limits = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                base, name = root / "sys/fs/cgroup", "memory.max"
            elif controllers == "memory":
                base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            group = Path(path.strip("/"))
            limits += [_limit(base / parent / name) for parent in (group, *group.parents)]
    found = [limit for limit in limits if limit is not None]
    return min(found) // 2**20 if found else None


def over_quota() -> str:
    """Return what `quota` says of filesystems where this user has reached a limit, "" for none or no `quota`."""
    return run_command(["quota", "-q"], 10.0).output.strip() if shutil.which("quota") else ""


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _UNLIMITED_BYTES else None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
