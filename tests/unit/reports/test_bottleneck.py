"""The bottleneck is the part that hardly waits while the others do; where none is, none is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpc_marl.config import ActorGroupConfig, ExperimentConfig, PPOConfig, TrainerGroupConfig
from hpc_marl.reports.bottleneck import find_bottleneck
from hpc_marl.trials.time_record import KindTime, TimeRecord

ASYNC = ExperimentConfig(mode="async", actors=ActorGroupConfig(count=4, num_envs=16, num_groups=2))


def record(
    actor: dict[str, float],
    trainer: dict[str, float],
    policy: dict[str, float] | None = None,
    *,
    cpu_share: float = 1.0,
) -> TimeRecord:
    """Return a record of 100 s in which every kind spent these percentages."""
    kinds = {"actor": actor, "trainer": trainer, **({"policy": policy} if policy else {})}
    return TimeRecord(
        run_uuid="u",
        startup_s=5.0,
        training_s=100.0,
        updates=500,
        env_steps=100_000,
        kinds={
            name: KindTime(
                workers=1,
                seconds=dict(seconds),
                cpu_s=cpu_share * sum(s for what, s in seconds.items() if not what.startswith("wait")),
            )
            for name, seconds in kinds.items()
        },
    )


BUSY_TRAINER = {"learn": 90.0, "wait_data": 5.0, "other": 5.0}
WAITING_TRAINER = {"learn": 20.0, "wait_data": 75.0, "other": 5.0}
WAITING_ACTOR = {"env": 30.0, "inference": 10.0, "wait_credit": 50.0, "other": 10.0}


def test_a_trainer_that_learns_while_actors_wait():
    found = find_bottleneck(record(WAITING_ACTOR, BUSY_TRAINER), ASYNC)
    assert found.where == "trainer"
    [line] = found.lines
    assert line.startswith("the trainer: 90 % of its time goes to learning while actors wait 50 % for it; ")
    assert "algorithm.num_epochs below 4" in line and line.endswith("or trainer.device=cuda would help")


@pytest.mark.parametrize(
    ("activity", "says"),
    [("publish", "algorithm.rollout_length above"), ("checkpoint", "trainer.checkpoint_interval_s above")],
)
def test_a_trainer_that_does_something_else(activity: str, says: str):
    trainer = {"learn": 20.0, activity: 70.0, "wait_data": 10.0}
    [line] = find_bottleneck(record(WAITING_ACTOR, trainer), ASYNC).lines
    assert "70 %" in line and says in line


def test_what_cannot_be_lowered_is_not_proposed():
    config = replace(
        ASYNC,
        algorithm=PPOConfig(num_epochs=1, num_minibatches=1),
        trainer=TrainerGroupConfig(device="cuda", cpus=2),
    )
    [line] = find_bottleneck(record(WAITING_ACTOR, BUSY_TRAINER), config).lines
    assert "epochs" not in line and "minibatches" not in line
    assert line.endswith(
        "; trainer.cuda_graph=true, trainer.precision=tf32 or bf16 or more trainer.count would help"
    )
    trainer = replace(config.trainer, cuda_graph=True, precision="bf16")
    [line] = find_bottleneck(record(WAITING_ACTOR, BUSY_TRAINER), replace(config, trainer=trainer)).lines
    assert line.endswith("; more trainer.count would help")


def test_how_much_a_gpu_is_at_work_is_said():
    config = replace(ASYNC, trainer=TrainerGroupConfig(device="cuda"))
    made = record(WAITING_ACTOR, BUSY_TRAINER)
    made.kinds["trainer"].device_s = 45.0
    [line] = find_bottleneck(made, config).lines
    assert "goes to learning (its GPU is at work for 50 % of that) while actors wait" in line


@pytest.mark.parametrize(
    ("actor", "where", "says"),
    [
        ({"env": 91.0, "inference": 9.0}, "environments", "actors are 91 % in env.step"),
        ({"env": 20.0, "inference": 80.0}, "inference", "actors.num_envs above 16"),
        ({"env": 20.0, "write": 80.0}, "actors", "80 % writing samples"),
        ({"env": 20.0, "other": 80.0}, "actors", "80 % in their own loop"),
    ],
)
def test_actors_that_never_wait_for_the_trainer(actor: dict[str, float], where: str, says: str):
    found = find_bottleneck(record(actor, WAITING_TRAINER), ASYNC)
    assert found.where == where
    [line] = found.lines
    assert says in line and "the trainer waits 75 % for samples" in line and "actors.count above 4" in line


@pytest.mark.parametrize(
    ("policy", "where", "says"),
    [
        ({"inference": 80.0, "wait_requests": 20.0}, "policy workers", "policies.count above"),
        ({"inference": 20.0, "wait_requests": 80.0}, "latency", "actors.num_groups above 2"),
    ],
)
def test_actors_that_wait_for_inference(policy: dict[str, float], where: str, says: str):
    actor = {"env": 30.0, "wait_inference": 65.0, "wait_credit": 5.0}
    found = find_bottleneck(record(actor, WAITING_TRAINER, policy), ASYNC)
    assert found.where == where
    assert says in found.lines[0] and "actors wait 65 % for inference" in found.lines[0]


@pytest.mark.parametrize(
    ("learn", "says"), [(60.0, "the longer turn is the trainer's"), (40.0, "the longer turn is the actors'")]
)
def test_sync_actors_and_trainer_take_turns(learn: float, says: str):
    actor = {"env": 100.0 - learn, "wait_parameters": learn}
    trainer = {"learn": learn, "wait_data": 100.0 - learn}
    found = find_bottleneck(record(actor, trainer), replace(ASYNC, mode="sync"))
    assert found.where == "turns"
    assert "mode=async lets both work at once" in found.lines[0] and says in found.lines[0]


def test_async_actors_and_trainer_that_wait_for_each_other():
    trainer = {"learn": 60.0, "wait_data": 40.0}
    found = find_bottleneck(record(WAITING_ACTOR, trainer), ASYNC)
    assert found.where == "turns" and "streams.sample_slots above" in found.lines[0]


def test_nothing_stands_out_where_all_are_busy():
    found = find_bottleneck(record({"env": 90.0, "wait_credit": 10.0}, BUSY_TRAINER), ASYNC)
    assert found.where == "balanced"
    assert found.lines[0].startswith("none stands out: the trainer waits 5 % for samples and actors 10 %")


def test_workers_that_do_not_even_get_a_core_each():
    found = find_bottleneck(record({"env": 90.0, "other": 10.0}, WAITING_TRAINER, cpu_share=0.4), ASYNC)
    assert found.where == "environments"
    assert found.lines[1] == (
        "while at work, actors used a core 40 % of the time: the environment itself waits, or too few cores are "
        "free, and then only fewer processes or more cores help"
    )


def test_a_gpu_that_works_for_the_trainer_is_no_lack_of_cores():
    made = record(WAITING_ACTOR, BUSY_TRAINER, cpu_share=0.4)
    assert len(find_bottleneck(made, ASYNC).lines) == 2
    assert len(find_bottleneck(made, replace(ASYNC, trainer=TrainerGroupConfig(device="cuda"))).lines) == 1


def test_a_start_that_takes_longer_than_the_training_is_named():
    made = record(WAITING_ACTOR, BUSY_TRAINER)
    made.startup_s = 110.0
    lines = find_bottleneck(made, ASYNC, elapsed_s=215.0).lines
    assert lines[-1].startswith("start-up: the first update came after 01:50 of 03:35")
    assert len(find_bottleneck(made, ASYNC, elapsed_s=250.0).lines) == 1


@pytest.mark.parametrize("changes", [{"training_s": 1.0}, {"updates": 3}])
def test_too_little_was_seen(changes: dict[str, float]):
    made = record(WAITING_ACTOR, BUSY_TRAINER)
    for name, value in changes.items():
        setattr(made, name, value)
    found = find_bottleneck(made, ASYNC)
    assert found.where == "unknown" and found.lines[0].startswith("too short to say")


def test_nothing_is_said_where_nothing_is_known():
    assert find_bottleneck(None, ASYNC).lines == ()
    assert find_bottleneck(TimeRecord(training_s=100.0, updates=500), ASYNC).lines == ()
