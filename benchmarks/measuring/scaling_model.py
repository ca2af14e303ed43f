"""The model of docs/scaling.md: what a run of many actors asks of every part, from costs that are measured here.

rates per actor x actors per trainer  ->  CPU, bytes, messages and file operations per second of each part
demand / capacity                     ->  load; the part with the largest load is the first bottleneck
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def predicted_rate(num_actors: int, single_rate: float, cpu_s_per_env_step: float, num_cores: int) -> float:
    """Return env_steps/s of actors that neither share data nor locks: linear until the cores are full.

    Args:
        num_actors: actors of one trainer.
        single_rate: env_steps/s of one actor alone.
        cpu_s_per_env_step: CPU seconds of all processes per environment step.
        num_cores: cores of all of them together.

    >>> predicted_rate(4, 1000.0, 0.0001, 2), predicted_rate(64, 1000.0, 0.0001, 2)
    (4000.0, 20000.0)
    """
    return min(num_actors * single_rate, num_cores / cpu_s_per_env_step)


@dataclass(frozen=True)
class Load:
    """What one part of a run is asked for, and what it can do, in the same unit.

    Attributes:
        part: of the system.
        demand: per second, or CPU seconds per second.
        capacity: of one such part.
        unit: of both.
        answer: what the design has for it when it is too much.
    """

    part: str
    demand: float
    capacity: float
    unit: str
    answer: str

    @property
    def share(self) -> float:
        """Demand over capacity; above 1 it is a bottleneck."""
        return self.demand / self.capacity


def first_bottleneck(loads: Sequence[Load]) -> Load:
    """Return the part with the largest share.

    >>> first_bottleneck([Load("a", 1, 2, "B/s", ""), Load("b", 3, 2, "B/s", "")]).part
    'b'
    """
    return max(loads, key=lambda load: load.share)


@dataclass(frozen=True)
class Cluster:
    """A run of many actors.

    Attributes:
        actors: actor workers in all.
        trainers: trainer workers in all; actor i sends to trainer i mod trainers.
        actors_per_node: which share one host process.
        env_steps_per_s: of one actor.
        bytes_per_env_step: of a sample batch: observations, actions, rewards, flags of all agents.
        env_steps_per_batch: of one sample batch.
        parameter_bytes: of the actor's network.
        updates_per_s: parameter versions per second.
    """

    actors: int
    trainers: int
    actors_per_node: int
    env_steps_per_s: float
    bytes_per_env_step: float
    env_steps_per_batch: int
    parameter_bytes: float
    updates_per_s: float


@dataclass(frozen=True)
class Costs:
    """What parts of the system cost, or can do; docs/scaling.md says which script measures each.

    Attributes:
        receive_bytes_per_s: sample bytes that one trainer takes in over encrypted sockets by one I/O thread.
        send_bytes_per_s: parameter bytes that one publisher encrypts and sends by one I/O thread, to all readers.
        receive_cpu_s: trainer's CPU seconds per sample batch from another node.
        learn_s: seconds per env_step learned, all epochs together, on the trainer's device.
        heartbeat_cpu_s: controller's CPU seconds per worker whose heartbeat arrives.
        heartbeats_per_s: workers whose heartbeats arrive per second, however many workers there are.
        file_operations_per_worker_s: of the controller, per worker, at a thousand workers.
        file_operations_per_host_s: of a host process, which writes what its workers used.
        file_operations_per_s: that a shared file system serves without being felt.
    """

    receive_bytes_per_s: float
    send_bytes_per_s: float
    receive_cpu_s: float
    learn_s: float
    heartbeat_cpu_s: float
    heartbeats_per_s: float
    file_operations_per_worker_s: float
    file_operations_per_host_s: float
    file_operations_per_s: float


def loads(cluster: Cluster, costs: Costs) -> list[Load]:
    """Return what a run asks of each part, the largest share first."""
    per_trainer = cluster.actors / cluster.trainers
    env_steps = per_trainer * cluster.env_steps_per_s
    hosts = cluster.actors / cluster.actors_per_node + cluster.trainers
    files = (
        cluster.actors + cluster.trainers
    ) * costs.file_operations_per_worker_s + hosts * costs.file_operations_per_host_s
    found = [
        Load(
            "learning, one trainer",
            env_steps * costs.learn_s,
            1.0,
            "trainers",
            "more trainers (trainer.count), more of their CPUs or a GPU, fewer epochs",
        ),
        Load(
            "parameters out of one trainer",
            per_trainer * cluster.parameter_bytes * cluster.updates_per_s / 1e6,
            costs.send_bytes_per_s / 1e6,
            "MB/s",
            "one reader per node that hands them on by shared memory; above that a tree of nodes",
        ),
        Load(
            "samples into one trainer",
            env_steps * cluster.bytes_per_env_step / 1e6,
            costs.receive_bytes_per_s / 1e6,
            "MB/s",
            "several sample servers per trainer, each with an I/O thread; one sender per node",
        ),
        Load(
            "taking batches in, one trainer",
            env_steps / cluster.env_steps_per_batch * costs.receive_cpu_s,
            1.0,
            "cores",
            "longer batches (algorithm.rollout_length, actors.num_envs); several sample servers",
        ),
        Load(
            "the shared file system",
            files,
            costs.file_operations_per_s,
            "operations/s",
            "only the controller and hosts look at files, and more seldom the more workers there are",
        ),
        Load(
            "the controller",
            costs.heartbeats_per_s * costs.heartbeat_cpu_s,
            1.0,
            "cores",
            "hosts pass on their workers' heartbeats, and more seldom the more workers there are",
        ),
    ]
    return sorted(found, key=lambda load: load.share, reverse=True)
