"""The benchmarks' arithmetic and tables, on figures made up here: nothing is trained."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_STEPS, _EPISODES = "env_steps", "num_episodes"


@pytest.fixture(autouse=True)
def as_scripts_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make benchmarks/ importable, as it is for a script that lies there."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def load(name: str) -> Any:
    return importlib.import_module(name)


def score(**changes: Any) -> Any:
    values = {
        **{"experiment": "lbf_mappo", "variant": "sync/inline", "total_env_steps": 1000, "seed": 1},
        **{"return_mean": 0.97, "interval": (0.95, 0.99), "episodes": 100, "env_steps": 1024},
        **{"goal_env_steps": 700, "wall_s": 12.0, "machine": "a processor, 2 cores, load 1.5, torch 2"},
    }
    return load("measuring.results").Score(**{**values, **changes})


def timeline(rate: float, **cores: float) -> list[Any]:
    point = load("measuring.timeline").Point
    return [
        point(10.0 + t, rate * t, {part: t * busy for part, busy in cores.items()}) for t in range(0, 101, 5)
    ]


def test_rates_leave_start_up_and_end_out() -> None:
    points = timeline(200.0, actor=1.5, trainer=0.5)
    slow_start = [points[0]._replace(time_s=-500.0), *points[1:]]
    slow_end = [*slow_start[:-1], points[-1]._replace(time_s=900.0)]
    found = load("measuring.timeline").middle_rates(slow_end)
    assert found.env_steps_per_s == pytest.approx(200.0)
    assert found.cores == pytest.approx({"actor": 1.5, "trainer": 0.5})


@pytest.mark.parametrize("num_points", [0, 1, 3])
def test_rates_of_a_run_that_is_too_short_are_refused(num_points: int) -> None:
    with pytest.raises(ValueError, match="too few updates"):
        load("measuring.timeline").middle_rates(timeline(1.0)[:num_points])


def throughput_results(with_peer: bool) -> dict[str, list[Any]]:
    rates = load("measuring.timeline").Rates
    found = {
        "env only": [rates(100.0, {"env": 2.0}), rates(1000.0, {"env": 2.0}), rates(200.0, {"env": 2.0})],
        "hpc-marl train, async": [rates(50.0, {"actor": 1.25, "trainer": 0.75})] * 3,
        "hpc-marl train, sync": [rates(40.0, {"actor": 1.0, "trainer": 1.0})] * 3,
    }
    if with_peer:
        found["stable-baselines3 PPO"] = [rates(25.0, {"peer": 1.0})] * 3
    return found


def test_throughput_ratios_are_taken_within_a_repeat() -> None:
    throughput = load("throughput")
    results = throughput_results(with_peer=True)
    rows = {
        row[1]: dict(zip(throughput.HEADER, row, strict=True)) for row in throughput.table_rows("T", results)
    }
    ours = rows["hpc-marl train, async"]
    assert ours["env_steps/s"] == "50"
    assert ours["of env only"] == "25.0%"  # the median of 50, 5 and 25 %
    assert ours["of the peer"] == "2.00 x"
    assert (ours["cores busy"], ours["env_steps per CPU-second"]) == ("2.00", "25")
    assert rows["env only"]["lowest to highest"] == "100 to 1,000"


def test_throughput_without_the_peer_has_the_other_rows() -> None:
    rows = load("throughput").table_rows("T", throughput_results(with_peer=False))
    assert [row[1] for row in rows] == ["env only", "hpc-marl train, async", "hpc-marl train, sync"]
    assert {row[5] for row in rows} == {"-"}


def test_actor_share() -> None:
    text = load("throughput").actor_share(throughput_results(with_peer=False), "sync")
    # env.step needs 2/200 CPU-seconds in the median repeat, an actor 1/40
    assert text == "sync, CPU time: actor 50%, trainer 50%; env.step is 40% of the actors'"


def test_a_busy_machine_is_said_to_be_one() -> None:
    throughput, results = load("throughput"), throughput_results(with_peer=False)
    assert throughput.disturbance(results, num_actors=2, num_cores=2) == ""
    assert "2.00 of 4 cores" in throughput.disturbance(results, num_actors=8, num_cores=4)


def test_the_tasks_of_throughput_compose() -> None:
    compose = load("hpc_marl.composing.compose").compose_experiment
    for task in load("throughput").TASKS.values():
        config = compose([f"experiment={task.experiment}", "actors.count=2"])
        batch = config.algorithm.rollout_length * config.actors.count * config.actors.num_envs
        assert task.quick_env_steps >= 4 * batch, "too few updates to have a middle"


def row(env_steps: int, number: int, mean: float | None = None) -> dict[str, Any]:
    return {_STEPS: env_steps, _EPISODES: number, **({} if mean is None else {"episode_return": mean})}


def test_the_goal_is_first_held_by_100_episodes() -> None:
    first_reached = load("measuring.learning").first_reached
    assert first_reached([row(10, 99, 1.0)], 0.5) is None
    assert first_reached([row(10, 99, 1.0), row(20, 0), row(30, 1, 1.0)], 0.5) == 30
    assert first_reached([row(10, 100, 0.0), row(20, 60, 1.0), row(30, 30, 1.0)], 0.9) == 30
    assert first_reached([row(10, 100, 0.0), row(20, 60, 1.0), row(30, 30, 1.0)], 0.91) is None
    assert first_reached([row(10, 1000, 0.0), row(20, 250, 1.0)], 1.0) == 20


def test_the_interquartile_mean_leaves_out_the_outer_quarters() -> None:
    learning = load("measuring.learning")
    assert learning.interquartile_mean([0.0, 3.0, 1.0, 2.0, 100.0]) == 2.0
    assert learning.interquartile_mean([4.0, 5.0]) == 4.5
    low, high = learning.bootstrap_interval([0.9, 0.95, 0.97, 0.98, 1.0])
    assert 0.9 <= low < 0.9667 < high <= 1.0
    assert learning.bootstrap_interval([0.5]) == (0.5, 0.5)


def test_scores_are_summed_up_per_variant() -> None:
    text = load("scores").report(
        [score(seed=2, return_mean=0.94), score(), score(variant="async/remote", goal_env_steps=None)]
    )
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    assert [line[1:3] for line in lines[2:]] == [
        ["async/remote", "1"],
        ["async/remote", "all"],
        ["sync/inline", "1"],
        ["sync/inline", "2"],
        ["sync/inline", "all"],
    ]
    assert lines[4][3:] == ["0.97 (0.95 to 0.99)", "100", "1,024", "700", "12", "holds (>= 0.95)"]
    assert lines[5][-1] == "MISSED (>= 0.95)"
    assert lines[2][6] == "-"
    assert lines[6][-1] == "1 of 2 seeds"
    assert text.endswith("a processor, 2 cores, torch 2")


def test_an_interrupted_series_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, output = load("scores"), tmp_path / "results.json"
    measured: list[int] = []

    def measure(run: Any) -> Any:
        if run.seed == 2 and not measured.count(2):
            measured.append(2)
            raise scores.TrainingError("interrupted")
        measured.append(run.seed)
        return score(**run._asdict())

    monkeypatch.setattr(scores, "measure", measure)
    command = ["--experiments", "lbf_mappo", "--seeds", "1..3", "--total-env-steps", "1000"]
    command += ["--output", str(output)]
    assert scores.main(command) == 1
    assert scores.main(command) == 0
    assert measured == [1, 2, 3, 2]
    assert {found["seed"] for found in json.loads(output.read_text())["scores"]} == {1, 2, 3}


def test_a_report_needs_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, results, output = load("scores"), load("measuring.results"), tmp_path / "results.json"
    command = ["--report", "--output", str(output)]
    results.write_scores(output, [score()])
    assert results.read_scores(output) == [score()]
    assert scores.main(command) == 0
    assert "1 of 1 seeds" in capsys.readouterr().out
    results.write_scores(output, [score(), score(seed=2, return_mean=0.9)])
    assert scores.main(command) == 1
    output.write_text("[]")
    with pytest.raises(ValueError, match="not written by this script"):
        scores.main(command)


def test_runs_are_planned_from_the_options() -> None:
    scores = load("scores")
    assert scores.parse_seeds("1..3,7") == [1, 2, 3, 7]
    runs = scores.planned_runs(
        scores._parse(["--experiments", "cartpole_ppo", "--variants", "all", "--seeds", "4"])
    )
    assert [run.variant for run in runs] == ["sync/inline", "sync/remote", "async/inline", "async/remote"]
    assert {(run.seed, run.total_env_steps) for run in runs} == {
        (
            4,
            load("hpc_marl.composing.compose")
            .compose_experiment(["experiment=cartpole_ppo"])
            .total_env_steps,
        )
    }


def test_goals_hold_at_the_goal() -> None:
    assert score(return_mean=0.95).holds
    assert not dataclasses.replace(score(), return_mean=0.9499).holds


def test_the_machine_is_described() -> None:
    facts = load("measuring.reporting").machine_facts()
    assert " cores, load " in facts
    assert "torch " in facts
