"""Where the time goes is seen from outside: the profile's files, and a summary that names the bottleneck.

Only cases so gross that no busy machine can turn them around.
"""

from __future__ import annotations

import pytest

from tests.integration.conftest import Run, Train

SLOW_ENVIRONMENT = ("env=stand_in", "env.make.step_s=0.02", "actors.num_envs=8", "total_env_steps=8000")
SLOW_LEARNER = ("algorithm.num_epochs=4000", "total_env_steps=4000")


def shares(run: Run, kind: str) -> dict[str, float]:
    found: dict[str, float] = run.state("profile.json")["kinds"][kind]["shares"]
    assert sum(found.values()) == pytest.approx(1.0)
    return found


def test_a_slow_environment_is_named(train: Train) -> None:
    run = train("mode=async", "profile=true", "actors.count=2", *SLOW_ENVIRONMENT)
    output = run.finish_well()
    assert run.state("profile.json")["bottleneck"]["where"] == "environments"
    assert "  bottleneck  " in output and "the environments: actors are " in output
    assert shares(run, "actor")["env"] > 0.5
    assert shares(run, "trainer")["wait_data"] > 0.5
    assert (run.directory / "profile.png").stat().st_size > 10_000
    page = (run.directory / "profile.md").read_text()
    assert "| actor x 2 | env.step |" in page and "| trainer x 1 | " in page
    assert "actor x 2    env.step" in output  # the table is printed, too


def test_a_slow_learner_is_named(train: Train) -> None:
    run = train("mode=async", "profile=true", *SLOW_LEARNER)
    output = run.finish_well()
    assert run.state("profile.json")["bottleneck"]["where"] == "trainer"
    assert "% of its time goes to learning" in output and "algorithm.num_epochs below 4000" in output
    assert shares(run, "trainer")["learn"] > 0.5
    assert shares(run, "actor")["wait_credit"] > 0.5


def test_without_profile_only_the_summary_speaks(train: Train) -> None:
    run = train("mode=async", "total_env_steps=1000")
    output = run.finish_well()
    assert "  bottleneck        too short to say: training was seen for " in output
    assert not list(run.directory.glob("profile.*"))
