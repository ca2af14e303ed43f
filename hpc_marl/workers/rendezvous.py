"""How the trainers of one epoch become one process group of torch.distributed.

    NameStore   torch's rendezvous store over the run's name service: no server, no port, no rank that must be first
    join        all ranks call it at about the same time; gloo for CPU tensors, nccl for those of a GPU

Only addresses go through the store; its entries are as safe as the run's directory, which no other user can enter.
The traffic of gloo and nccl themselves is neither encrypted nor authenticated: these libraries know no such thing. It
carries gradients, statistics and ledgers, between trainers only, and goes through the interface that the run uses
(loopback on one machine). On a network that others can reach, choose an interface of the cluster's own.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from hpc_marl.algorithms.ranks import DistributedRanks
from hpc_marl.base import names
from hpc_marl.base.name_resolve import NameResolver
from hpc_marl.base.network import interface_addresses, is_loopback, routable_address
from hpc_marl.base.run_context import RunContext
from hpc_marl.errors import ConfigError, NameEntryExistsError, NameEntryNotFoundError

COLLECTIVE_TIMEOUT_S = 30.0
"""A rank that lets the others wait for longer is taken for dead: they fail, and all trainers are started again."""

_POLL_S = 0.01


class NameStore(dist.Store):  # type: ignore[name-defined,misc]
    """A torch.distributed.Store over the name service. Keys are set once, counted, or waited for.

    A counter is a row of entries, 1, 2, 3 ..., each holding the total; of several processes that add at once exactly
    one makes the next entry, the others try the one after.

    Args:
        resolver: the run's name service.
        root: of all entries of this store.
        timeout_s: how long `get` and `wait` wait.
    """

    def __init__(self, resolver: NameResolver, root: str, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        super().__init__()
        self._resolver, self._root, self._timeout_s = resolver, root, timeout_s
        self._counted: dict[str, int] = {}

    def set(self, key: str, value: str | bytes) -> None:
        """Store a value; replaces an earlier one."""
        content = value.encode() if isinstance(value, str) else bytes(value)
        self._resolver.add(self._value_name(key), base64.b64encode(content).decode(), replace=True)

    def get(self, key: str) -> bytes:
        """Wait for a key and return its value. Raises NameWaitTimeoutError."""
        if (total := self._total(key)) is not None:
            return str(total).encode()
        return base64.b64decode(self._resolver.wait(self._value_name(key), self._timeout_s))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0; return the total."""
        while True:
            total = (self._total(key) or 0) + amount
            if amount == 0:
                return total
            try:
                self._resolver.add(self._count_name(key, self._counted.get(key, 0) + 1), str(total))
                return total
            except NameEntryExistsError:
                continue

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return all(self._is_there(key) for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return when all keys are there. Raises TimeoutError."""
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        deadline = time.monotonic() + timeout_s
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s for {', '.join(keys)} of the other trainers")
            time.sleep(_POLL_S)

    def delete_key(self, key: str) -> bool:
        """Delete a value; return whether there was one."""
        try:
            self._resolver.delete(self._value_name(key))
        except NameEntryNotFoundError:
            return False
        return True

    def num_keys(self) -> int:
        """Return how many keys there are."""
        depth = self._root.count("/") + 1
        return len({name.split("/")[depth] for name in self._resolver.find_subtree(self._root)})

    def set_timeout(self, timeout: timedelta) -> None:
        """Wait for this long from now on."""
        self._timeout_s = timeout.total_seconds()

    def _is_there(self, key: str) -> bool:
        if self._total(key) is not None:
            return True
        try:
            self._resolver.get(self._value_name(key))
        except NameEntryNotFoundError:
            return False
        return True

    def _total(self, key: str) -> int | None:
        """Return a counter's total, None where there is no such counter."""
        total: int | None = None
        count = max(self._counted.get(key, 1), 1)
        while True:
            try:
                total = int(self._resolver.get(self._count_name(key, count)))
            except NameEntryNotFoundError:
                return total
            self._counted[key] = count
            count += 1

    def _value_name(self, key: str) -> str:
        return f"{self._root}/{key.encode().hex()}/value"

    def _count_name(self, key: str, count: int) -> str:
        return f"{self._root}/{key.encode().hex()}/count/{count}"


def join(
    context: RunContext,
    *,
    epoch: int,
    rank: int,
    world_size: int,
    device: str,
    timeout_s: float = COLLECTIVE_TIMEOUT_S,
) -> DistributedRanks:
    """Become one of the ranks of an epoch; returns when all have come.

    Raises:
        RuntimeError, NameWaitTimeoutError: not all came in time.
        ConfigError: the addresses that the run listens at belong to no interface of this machine.
    """
    root = names.rendezvous(context.experiment_name, context.trial_name, epoch)
    interface = interface_of(context.bind_hosts)
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"  # else all whose names begin like this
    torch_device = torch.device(device)
    store = NameStore(context.resolver, f"{root}/store", timeout_s)
    if torch_device.type == "cuda":
        torch_device = own_gpu(store, rank)
        torch.cuda.set_device(torch_device)
    dist.init_process_group(
        "nccl" if torch_device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    ranks = DistributedRanks(torch_device, store)
    ranks.share_memory(timeout_s)
    return ranks


def own_gpu(store: NameStore, rank: int) -> torch.device:
    """Return the GPU of this rank alone, as NCCL takes no two ranks on one.

    Trainers that were given GPUs see no others, and take the first. Where nobody has dealt them out (no Slurm, no
    CUDA_VISIBLE_DEVICES), all trainers of a host see the same ones, and the n-th of them takes the n-th.

    Args:
        store: of all ranks.
        rank: of this one.

    Raises:
        NameWaitTimeoutError: a lower rank did not come in time.
    """
    host = socket.gethostname().encode()
    store.set(f"host/{rank}", host)
    num_visible = torch.cuda.device_count()
    if num_visible < 2:
        return torch.device("cuda", 0)
    before = sum(store.get(f"host/{other}") == host for other in range(rank))
    return torch.device("cuda", before % num_visible)


def interface_of(hosts: Sequence[str]) -> str:
    """Return the network interface of the addresses that the run listens at; of several, the one others reach.

    >>> interface_of(["127.0.0.1"])
    'lo'

    Raises:
        ConfigError: no interface of this machine has them.
    """
    available = interface_addresses()
    routable = routable_address()
    for host in sorted(hosts, key=lambda host: host != routable):
        for name, addresses in available.items():
            if host in addresses or (is_loopback(host) and all(is_loopback(a) for a in addresses)):
                return name
    listing = ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in sorted(available.items()))
    raise ConfigError(f"no interface has one of the addresses {', '.join(hosts)}; there are: {listing}")
