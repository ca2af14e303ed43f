"""Which part of a run holds up all the others, judged by where its workers' time went; pure.

the trainer hardly waits, actors do      -> the trainer
actors hardly wait for it, the trainer does -> the actors: environments, inference, or what else they do most
both wait                                -> they take turns
neither does                             -> balanced
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_marl.config import ExperimentConfig
from hpc_marl.trials.time_record import TimeRecord
from hpc_marl.views.display import clock_text

WAITS = ("wait_data", "wait_trainers", "wait_credit", "wait_parameters", "wait_inference", "wait_requests")
"""Activities in which a worker does nothing."""

_WAITS_FOR_ACTORS = ("wait_data", "wait_trainers")
_WAITS_FOR_TRAINER = ("wait_credit", "wait_parameters")
_HARDLY = 0.25
_BUSY = 0.6
_LITTLE_CPU = 0.6
_LEAST_S = 3.0
_LEAST_UPDATES = 5

Shares = Mapping[str, float]


@dataclass(frozen=True)
class Bottleneck:
    """What holds a run up.

    Attributes:
        where: trainer, environments, inference, policy workers, latency, actors, turns, balanced, or unknown.
        lines: what was seen and what to change, a sentence or two each.
    """

    where: str
    lines: tuple[str, ...]


def find_bottleneck(
    record: TimeRecord | None, config: ExperimentConfig, elapsed_s: float | None = None
) -> Bottleneck:
    """Return what to change about a run so that it gets faster.

    Args:
        record: where its time went; None: not known.
        config: the experiment.
        elapsed_s: of the whole run; None: not known.
    """
    if record is None:
        return Bottleneck("unknown", ())
    if record.training_s < _LEAST_S or record.updates < _LEAST_UPDATES:
        seen = f"training was seen for {record.training_s:.1f} s and {record.updates} updates only"
        return Bottleneck("unknown", (f"too short to say: {seen}", *_startup(record, elapsed_s)))
    if not {"trainer", "actor"} <= record.kinds.keys():
        return Bottleneck("unknown", ())
    trainer, actor = record.kinds["trainer"].shares(), record.kinds["actor"].shares()
    trainer_waits, actors_wait = _sum(trainer, _WAITS_FOR_ACTORS), _sum(actor, _WAITS_FOR_TRAINER)
    if trainer_waits > _HARDLY and actors_wait > _HARDLY:
        found = _turns(trainer, actor, config)
    elif trainer_waits <= _HARDLY and actors_wait <= _HARDLY:
        found = _balanced(trainer_waits, actors_wait)
    elif trainer_waits < actors_wait:
        found = _trainer(record, actors_wait, config)
    else:
        found = _actors(record, actor, trainer_waits, config)
    return Bottleneck(
        found.where, (*found.lines, *_cpu(found.where, record, config), *_startup(record, elapsed_s))
    )


def _trainer(record: TimeRecord, actors_wait: float, config: ExperimentConfig) -> Bottleneck:
    used = record.kinds["trainer"]
    trainer = used.shares()
    activity = _most(trainer, tuple(_TRAINER_DOES))
    saw = f"the trainer: {_percent(trainer.get(activity, 0.0))} of its time goes to {_TRAINER_DOES[activity]}"
    if activity == "learn" and used.device_s:
        saw += (
            f" (its GPU is at work for {_percent(min(used.device_s / used.seconds['learn'], 1.0))} of that)"
        )
    line = f"{saw} while actors wait {_percent(actors_wait)} for it; {_trainer_remedy(activity, config)} would help"
    return Bottleneck("trainer", (line,))


_TRAINER_DOES = {
    "learn": "learning",
    "publish": "publishing parameters",
    "checkpoint": "checkpoints",
    "other": "what surrounds the updates",
}


def _trainer_remedy(activity: str, config: ExperimentConfig) -> str:
    algorithm, trainer = config.algorithm, config.trainer
    if activity == "checkpoint":
        return f"trainer.checkpoint_interval_s above {trainer.checkpoint_interval_s:g}"
    if activity in ("publish", "other"):
        return f"fewer and larger updates (algorithm.rollout_length above {algorithm.rollout_length})"
    epochs = [f"algorithm.num_epochs below {algorithm.num_epochs}"] if algorithm.num_epochs > 1 else []
    larger = [f"fewer algorithm.num_minibatches than {algorithm.num_minibatches}"]
    minibatches = larger if algorithm.num_minibatches > 1 else []
    if not trainer.device.startswith("cuda"):
        return _either(
            [*epochs, *minibatches, "more trainer.cpus", "more trainer.count", "trainer.device=cuda"]
        )
    graph = [] if trainer.cuda_graph or trainer.count > 1 else ["trainer.cuda_graph=true"]
    rounder = ["trainer.precision=tf32 or bf16"] if trainer.precision == "float32" else []
    return _either([*epochs, *minibatches, *graph, *rounder, "more trainer.count"])


def _actors(record: TimeRecord, actor: Shares, trainer_waits: float, config: ExperimentConfig) -> Bottleneck:
    activity = _most(actor, ("env", "inference", "wait_inference", "write", "other"))
    share = _percent(actor.get(activity, 0.0))
    waits = f"the trainer waits {_percent(trainer_waits)} for samples"
    if activity == "wait_inference":
        return _remote_inference(record, share, waits, config)
    remedy = f"{_actors_remedy(activity, config)} would help"
    if activity == "env":
        line = f"the environments: actors are {share} in env.step, {waits}; {remedy}"
        return Bottleneck("environments", (line,))
    if activity == "inference":
        line = f"inference: actors choose actions {share} of the time, {waits}; {remedy}"
        return Bottleneck("inference", (line,))
    does = "writing samples" if activity == "write" else "in their own loop"
    return Bottleneck("actors", (f"the actors: they are {share} {does}, {waits}; {remedy}",))


def _actors_remedy(activity: str, config: ExperimentConfig) -> str:
    more = f"actors.count above {config.actors.count}"
    share_a_turn = f"actors.num_envs above {config.actors.num_envs}"
    remedies = {
        "env": [more, "a faster environment"],
        "inference": [share_a_turn, more, "a smaller network"],
        "wait_inference": [share_a_turn, more],
        "write": [more, "smaller observations"],
        "other": [share_a_turn, more],
    }
    return _either(remedies[activity])


def _remote_inference(record: TimeRecord, share: str, waits: str, config: ExperimentConfig) -> Bottleneck:
    policy = record.kinds["policy"].shares() if "policy" in record.kinds else {}
    works = 1.0 - _sum(policy, WAITS) if policy else 0.0
    saw = f"actors wait {share} for inference, {waits}"
    if works >= _BUSY:
        remedy = f"policies.count above {config.policies.count} or policies.device=cuda"
        line = f"the policy workers: they are busy {_percent(works)}, {saw}; {remedy} would help"
        return Bottleneck("policy workers", (line,))
    groups, envs = config.actors.num_groups, config.actors.num_envs
    remedies = [
        f"actors.num_groups above {groups} (one steps while another waits)",
        f"actors.num_envs above {envs}",
        "for a small network inference=inline",
    ]
    line = f"latency of inference: {saw}, but policy workers are busy {_percent(works)} only"
    return Bottleneck("latency", (f"{line}; {_either(remedies)} would help",))


def _turns(trainer: Shares, actor: Shares, config: ExperimentConfig) -> Bottleneck:
    learns, samples = 1.0 - _sum(trainer, _WAITS_FOR_ACTORS), 1.0 - _sum(actor, _WAITS_FOR_TRAINER)
    saw = f"the trainer works {_percent(learns)} of the time and actors {_percent(samples)}"
    if config.mode == "async":
        slots = f"(streams.sample_slots above {config.streams.sample_slots})"
        line = f"actors and trainer wait for each other: {saw}; more batches under way {slots} would help"
        return Bottleneck("turns", (line,))
    if learns >= samples:
        longer = f"the trainer's: {_trainer_remedy(_most(trainer, tuple(_TRAINER_DOES)), config)}"
    else:
        activity = _most(actor, ("env", "inference", "wait_inference", "write", "other"))
        longer = f"the actors': {_actors_remedy(activity, config)}"
    line = f"actors and trainer take turns: {saw}; mode=async lets both work at once; the longer turn is {longer}"
    return Bottleneck("turns", (line,))


def _balanced(trainer_waits: float, actors_wait: float) -> Bottleneck:
    line = (
        f"none stands out: the trainer waits {_percent(trainer_waits)} for samples and actors "
        f"{_percent(actors_wait)} for the trainer; only more cores for both would help"
    )
    return Bottleneck("balanced", (line,))


def _cpu(where: str, record: TimeRecord, config: ExperimentConfig) -> tuple[str, ...]:
    """Say where those that hold the run up do not even use a core each."""
    kind = {"trainer": "trainer", "policy workers": "policy"}.get(where, "actor")
    uses_gpu = {"trainer": config.trainer.device, "policy": config.policies.device}.get(kind, "cpu") != "cpu"
    used = record.kinds[kind]
    busy_s = sum(spent for activity, spent in used.seconds.items() if activity not in WAITS)
    if where == "latency" or uses_gpu or busy_s <= 0 or not 0 < used.cpu_s < _LITTLE_CPU * busy_s:
        return ()
    who = {"actor": "actors", "policy": "policy workers", "trainer": "the trainer"}[kind]
    reason = "the environment itself waits, or " if kind == "actor" else ""
    saw = f"while at work, {who} used a core {_percent(used.cpu_s / busy_s)} of the time"
    return (f"{saw}: {reason}too few cores are free, and then only fewer processes or more cores help",)


def _startup(record: TimeRecord, elapsed_s: float | None) -> tuple[str, ...]:
    if not elapsed_s or record.startup_s < 0.5 * elapsed_s:
        return ()
    return (
        f"start-up: the first update came after {clock_text(record.startup_s)} of {clock_text(elapsed_s)}; "
        "a longer run makes more of it",
    )


def _most(shares: Shares, activities: tuple[str, ...]) -> str:
    return max(activities, key=lambda activity: shares.get(activity, 0.0))


def _either(remedies: Sequence[str]) -> str:
    *first, last = remedies
    return f"{', '.join(first)} or {last}" if first else last


def _sum(shares: Shares, activities: tuple[str, ...]) -> float:
    return sum(shares.get(activity, 0.0) for activity in activities)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
