"""Nodes of a cluster that this machine stands in for: CPU and GPU slots, taken and given back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SeatRequest:
    """What one process needs.

    Attributes:
        cpus: CPU slots.
        gpus: GPU slots.
        is_apart: no other process of its job that is apart may be on its node, where there are several nodes.
    """

    cpus: int
    gpus: int
    is_apart: bool = False


@dataclass(frozen=True)
class Seat:
    """What one process has got.

    Attributes:
        node: index of the node.
        cpus: CPU slots.
        gpus: numbers of its GPUs, counted over all nodes.
    """

    node: int
    cpus: int
    gpus: tuple[int, ...]

    @property
    def node_name(self) -> str:
        """Name of the node, such as node0."""
        return f"node{self.node}"


class SimulatedNodes:
    """The free slots of some equal nodes.

    Args:
        num_nodes: how many.
        cpus: CPU slots of one; None: any number.
        gpus: GPU slots of one; 0: GPUs are not counted, everybody sees those of the machine.
    """

    def __init__(self, num_nodes: int, cpus: int | None, gpus: int) -> None:
        self._num_nodes = num_nodes
        self._cpus = cpus
        self._gpus = gpus
        self._free_cpus: list[float] = [math.inf if cpus is None else cpus] * num_nodes
        self._free_gpus = [list(range(node * gpus, (node + 1) * gpus)) for node in range(num_nodes)]

    def __str__(self) -> str:
        cpus = "any number of CPUs" if self._cpus is None else f"{self._cpus} CPUs"
        gpus = f" and {self._gpus} GPUs" if self._gpus else ""
        return f"{self._num_nodes} simulated node{'s' * (self._num_nodes > 1)} of {cpus}{gpus} each"

    @property
    def counts_gpus(self) -> bool:
        """Whether GPUs are slots here."""
        return self._gpus > 0

    def take(self, requests: Sequence[SeatRequest]) -> list[Seat] | None:
        """Take a seat for each request, on the first node where it fits; all of them, or none and return None."""
        seats: list[Seat] = []
        taken_apart: set[int] = set()
        for request in requests:
            is_apart = request.is_apart and self._num_nodes > 1
            seat = self._take_one(request, taken_apart if is_apart else set())
            if seat is None:
                self.give_back(seats)
                return None
            if is_apart:
                taken_apart.add(seat.node)
            seats.append(seat)
        return seats

    def give_back(self, seats: Sequence[Seat]) -> None:
        """Free what `take` took."""
        for seat in seats:
            self._free_cpus[seat.node] += seat.cpus
            self._free_gpus[seat.node] = sorted([*self._free_gpus[seat.node], *seat.gpus])

    def can_ever_seat(self, requests: Sequence[SeatRequest]) -> bool:
        """Whether the requests fit when everything is free."""
        return SimulatedNodes(self._num_nodes, self._cpus, self._gpus).take(requests) is not None

    def _take_one(self, request: SeatRequest, excluded: set[int]) -> Seat | None:
        gpus = request.gpus if self.counts_gpus else 0
        for node in range(self._num_nodes):
            free = self._free_gpus[node]
            if node in excluded or request.cpus > self._free_cpus[node] or gpus > len(free):
                continue
            self._free_cpus[node] -= request.cpus
            self._free_gpus[node] = free[gpus:]
            return Seat(node, request.cpus, tuple(free[:gpus]))
        return None
