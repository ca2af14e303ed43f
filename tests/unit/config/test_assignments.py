"""Every worker gets its own part, and that part is complete."""

from __future__ import annotations

import pytest

from hpc_marl.config import (
    ActorAssignment,
    EvaluatorAssignment,
    ExperimentConfig,
    ExtraGroupConfig,
    PolicyAssignment,
    TrainerAssignment,
    assignment,
    build,
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
