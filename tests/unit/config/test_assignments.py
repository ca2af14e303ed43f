"""Every worker gets its own part, and that part is complete."""

from __future__ import annotations

import dataclasses

import pytest

from hpc_marl.config import (
    ActorAssignment,
    ActorGroupConfig,
    EvaluatorAssignment,
    ExperimentConfig,
    ExtraGroupConfig,
    PolicyAssignment,
    TrainerAssignment,
    TrainerGroupConfig,
    assignment,
    build,
    share_of_update,
)
from hpc_marl.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("actor/1", ActorAssignment),
        ("policy/0", PolicyAssignment),
        ("trainer/0", TrainerAssignment),
        ("evaluator/0", EvaluatorAssignment),
    ],
)
def test_an_assignment_builds_to_its_own_type(name: str, kind: type) -> None:
    plain = assignment(ExperimentConfig(), name, epoch=1, life=0, num_actors=2)
    assert isinstance(build(kind, plain), kind)


def test_no_two_lives_of_actors_share_their_seed() -> None:
    config = ExperimentConfig()
    seeds = {
        tuple(assignment(config, f"actor/{index}", epoch=epoch, life=life, num_actors=2)["seed"])
        for index in range(3)
        for epoch in range(2)
        for life in range(2)
    }
    assert len(seeds) == 12


def test_a_synchronous_update_waits_for_the_actors_that_are_there() -> None:
    plain = assignment(ExperimentConfig(), "trainer/0", epoch=1, life=0, num_actors=1)
    assert plain["batches_per_update"] == 1


def test_workers_of_ones_own_get_their_config_as_it_is() -> None:
    extra = ExtraGroupConfig(worker_class="a:B", config={"interval_s": 3})
    config = ExperimentConfig(extra_workers={"monitor": extra})
    assert assignment(config, "monitor/0", epoch=1, life=0, num_actors=1) == {"interval_s": 3}
    with pytest.raises(ConfigError, match="monitor"):
        assignment(config, "monitr/0", epoch=1, life=0, num_actors=1)


def test_every_trainer_gets_its_share_of_the_actors_and_of_the_update() -> None:
    config = ExperimentConfig(
        mode="async", trainer=TrainerGroupConfig(count=2), actors=ActorGroupConfig(count=5, num_groups=2)
    )
    actors = [assignment(config, f"actor/{i}", epoch=1, life=0, num_actors=5) for i in range(5)]
    assert [actor["sample_trainer"] for actor in actors] == [f"trainer/{i}" for i in (0, 1, 0, 1, 0)]
    assert {actor["trainer_name"] for actor in actors} == {"trainer/0"}
    trainers = [assignment(config, f"trainer/{i}", epoch=1, life=0, num_actors=5) for i in range(2)]
    assert [trainer["batches_per_update"] for trainer in trainers] == [6, 4]
    assert [(trainer["rank"], trainer["world_size"]) for trainer in trainers] == [(0, 2), (1, 2)]
    assert [share_of_update(config, rank, [1, 3]) for rank in range(2)] == [0, 4]
    total = dataclasses.replace(config, trainer=TrainerGroupConfig(count=2, batches_per_update=8))
    assert assignment(total, "trainer/1", epoch=1, life=0, num_actors=5)["batches_per_update"] == 4


@pytest.mark.parametrize(
    ("mode", "actors", "trainer", "message"),
    [
        ("async", 2, {"count": 3}, "have at least as many actors as trainers"),
        ("sync", 3, {"count": 2}, "multiple of trainer.count=2 with mode=sync"),
        ("async", 4, {"count": 2, "batches_per_update": 3}, "multiple of trainer.count=2: it is the total"),
        ("async", 3, {"count": 2, "batches_per_update": 10}, "can never be under way at once"),
    ],
)
def test_a_trainer_without_its_share_is_refused(
    mode: str, actors: int, trainer: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig(
            mode=mode,  # type: ignore[arg-type]
            actors=ActorGroupConfig(count=actors),
            trainer=TrainerGroupConfig(**trainer),  # type: ignore[arg-type]
        )


def test_trainers_that_would_share_a_gpu_are_refused() -> None:
    shared = TrainerGroupConfig(count=2, device="cuda", gpus=0.5)
    with pytest.raises(ConfigError, match="NCCL takes no two"):
        ExperimentConfig(trainer=shared)
    ExperimentConfig(trainer=dataclasses.replace(shared, gpus=None))
    ExperimentConfig(trainer=dataclasses.replace(shared, count=1))
    with pytest.raises(ConfigError, match=r"trainer\.device=cuda:1 is one GPU.* use device=cuda"):
        ExperimentConfig(trainer=TrainerGroupConfig(count=2, device="cuda:1"))
    ExperimentConfig(trainer=TrainerGroupConfig(device="cuda:1"))
