"""The benchmarks' arithmetic and tables, on figures made up here: nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.benchmarks.scripts import BENCHMARKS, load

_STEPS, _EPISODES = "env_steps", "num_episodes"


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


def outcome(rate: float, **times: Any) -> Any:
    rates = load("measuring.timeline").Rates(rate, {"actor": 1.25, "trainer": 0.75})
    return load("measuring.watching").Outcome(rates, **times)


def comparison(with_peer: bool = True) -> dict[str, list[Any]]:
    rates, outcomes = load("measuring.timeline").Rates, load("measuring.watching").Outcome
    times = {"goal_env_steps": 70_000, "goal_s": 4.0, "learning_s": 2.0}
    found = {
        "env only": [outcomes(rates(rate, {"env": 2.0})) for rate in (100.0, 1000.0, 200.0)],
        "hpc_marl, sync": [outcome(40.0, **times)] * 3,
        "hpc_marl, async": [outcome(50.0, **{**times, "goal_s": None, "learning_s": None})] * 3,
    }
    if with_peer:
        found["a peer"] = [outcome(25.0, goal_env_steps=60_000, goal_s=14.0, learning_s=8.0)] * 3
        found["a fast peer"] = [outcome(26.0)] * 3
    return found


def test_ratios_are_taken_within_a_repeat() -> None:
    comparing = load("measuring.comparing")
    rows = {
        row[0]: dict(zip(comparing.HEADER, row, strict=True)) for row in comparing.table_rows(comparison())
    }
    ours = rows["hpc_marl, async"]
    assert ours["env_steps/s"] == "50"
    assert ours["of env only"] == "25%"  # the median of 50, 5 and 25 %
    assert rows["a peer"]["hpc_marl is"] == "2.0 x as fast"
    assert (ours["cores busy"], ours["env_steps per CPU-second"]) == ("2.00", "25")
    assert rows["env only"]["lowest to highest"] == "100 to 1,000"
    assert [rows["a peer"][name] for name in comparing.HEADER[5:8]] == ["60,000", "14.0", "8.0"]
    assert ours["s from the command"] == "-"


def test_goals_are_held_against_the_best_peer() -> None:
    end_to_end = load("end_to_end")
    rows = end_to_end.goal_rows("cartpole", comparison())
    assert [row[0].split(",")[0] for row in rows] == [
        "env_steps/s",
        "s from the command to the score",
        "s from the first step to the score",
        "env_steps to the score",
    ]
    assert rows[0][3:] == ["a fast peer", "1.9 x", "at least 5 x", "missed"]
    assert rows[1][3:] == ["a peer", "3.5 x", "at least 3 x", "reached"]
    assert rows[2][3:] == ["a peer", "4.0 x", "at least 3 x", "reached"]
    assert rows[3][-2:] == ["at most 150,000", "reached"]
    assert [row[0] for row in end_to_end.goal_rows("cartpole", comparison(False))] == [
        "env_steps to the score, hpc_marl, sync"
    ]
    assert end_to_end.goal_rows("cartpole_vector", comparison())[0][-1] == "missed"


def test_goals_against_a_certain_peer_are_held_against_it() -> None:
    contestants = load("measuring.contestants")
    results = {
        **comparison(False),
        contestants.BENCHMARL: [outcome(0.5)] * 3,
        contestants.BENCHMARL_AS_OURS: [outcome(10.0)] * 3,
    }
    rows = load("end_to_end").goal_rows("balance", results)
    assert [(row[3], row[4], row[6]) for row in rows] == [
        (contestants.BENCHMARL, "100.0 x", "reached"),
        (contestants.BENCHMARL_AS_OURS, "5.0 x", "missed"),
    ]
    assert load("end_to_end").goal_rows("balance", comparison()) == []  # such a peer is not installed


def test_actors_are_held_against_the_environment_on_as_much_cpu_time() -> None:
    rows = load("end_to_end").goal_rows("lbf", comparison())  # of which no peer is installed
    assert [row[1:] for row in rows] == [
        ["40", "8% to 80%", "env only", "40%", "at least 70%", "missed"]  # 50 / 1.25 of 50, 500 and 100
    ]
    contestants = load("measuring.contestants")
    both = load("end_to_end").goal_rows("rware", {**comparison(), contestants.EPYMARL: [outcome(10.0)] * 3})
    assert [row[6] for row in both] == ["reached", "missed"]


def test_a_training_of_few_long_updates_has_the_rate_of_the_whole() -> None:
    point, watching = load("measuring.timeline").Point, load("measuring.watching")
    rows = [{"time_s": 110.0, "env_steps": 1000, "num_episodes": 100, "episode_return": 2.0}]
    cpu = [point(t, 0, {"peer": 0.5 * t}) for t in (0.0, 10.0, 60.0, 110.0, 111.0)]
    watched = watching.Watched(0.0, 10.0, rows, cpu)
    with pytest.raises(ValueError, match="too few updates"):
        watched.outcome(None)
    found = watched.outcome(None, (1000, 2000), is_whole=True)
    assert found.rates.env_steps_per_s == pytest.approx(10.0)
    assert found.rates.cores == pytest.approx({"peer": 0.5})
    assert found.returns == (2.0, None)


def test_returns_are_compared_after_equally_many_env_steps() -> None:
    mean_return = load("measuring.learning").mean_return
    rows = [{"env_steps": 100 * n, "num_episodes": 50, "episode_return": float(n)} for n in range(1, 11)]
    assert mean_return(rows, 100) is None  # 50 episodes only
    assert mean_return(rows, 500) == 4.5
    assert mean_return(rows, 1015) == 9.5  # to within 2 %
    assert mean_return(rows, 1100) is None
    assert mean_return([], 100) is None


def test_the_table_of_returns_leaves_out_what_a_repeat_did_not_reach() -> None:
    return_rows = load("measuring.comparing").return_rows
    repeats = [outcome(1.0, returns=(0.0, 1.0)), outcome(1.0, returns=(2.0, None))]
    assert return_rows({"env only": [outcome(1.0)], "a peer": repeats}) == [["a peer", "1", "-"]]


def test_rows_of_peers_that_failed_once_are_left_out() -> None:
    repeats = [{"env only": outcome(1.0), "a peer": outcome(1.0)}, {"env only": outcome(2.0)}]
    assert list(load("end_to_end").complete(repeats)) == ["env only"]


def test_where_the_time_goes() -> None:
    remarks = load("end_to_end").where_the_time_goes(comparison())
    assert remarks[0] == "hpc_marl, sync: CPU time: actor 62%, trainer 38%."


def test_a_busy_machine_is_said_to_be_one() -> None:
    end_to_end, results = load("end_to_end"), comparison()
    assert end_to_end.disturbance(results, num_processes=2, num_cores=2) == ""
    assert "2.00 of 4 cores" in end_to_end.disturbance(results, num_processes=8, num_cores=4)


def test_the_tasks_of_end_to_end_compose_and_are_said_in_their_peers_words() -> None:
    contestants, compose = (
        load("measuring.contestants"),
        load("hpc_marl.composing.compose").compose_experiment,
    )
    assert {"cartpole", "cartpole_vector", "lbf"} <= set(contestants.runnable_tasks())
    for name in contestants.runnable_tasks():
        task = contestants.TASKS[name]
        config = compose([f"experiment={task.experiment}"])
        batch = config.algorithm.rollout_length * config.batches_per_update * config.actors.num_envs
        assert task.env_steps // 4 >= 4 * batch, f"{name}: too few updates to have a middle"
        for peer in task.peers(config):
            json.dumps(dict(peer.settings))
            assert (BENCHMARKS / "peers" / f"{peer.name}_driver.py").is_file()
            assert (BENCHMARKS / "peers" / f"{peer.name}.txt").is_file()


def peer_without_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> Any:
    """A peer whose Python is this one and whose driver is `program`."""
    peers = load("measuring.peers")
    monkeypatch.setattr(peers, "PEERS", tmp_path)
    monkeypatch.setattr(peers, "DRIVERS", tmp_path)
    (tmp_path / "stub" / "bin").mkdir(parents=True)
    # A link would leave this virtual environment, and with it numpy.
    python = tmp_path / "stub" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o700)
    (tmp_path / "stub_driver.py").write_text(program)
    return peers.Peer("a stub", "stub", {"length": 5})


def test_a_peer_reports_until_it_holds_the_goal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peers_directory = BENCHMARKS / "peers"
    peer = peer_without_environment(
        monkeypatch,
        tmp_path,
        f"""
import sys
sys.path.insert(0, {str(peers_directory)!r})
from peer_progress import PeerProgress, read_settings
progress, settings = PeerProgress(read_settings()), read_settings()
progress.started()
env_steps, going_on = 0, True
while going_on:
    env_steps += 50 * settings["length"]
    for _ in range(50):
        progress.episode(env_steps)
    going_on = progress.update(env_steps)
""",
    )
    assert not peer.is_installed
    assert "install.py stub" in peer.how_to_install
    watched = load("measuring.peers").run_peer(peer, seed=1, goal=1000.0, min_s=0.0, max_s=60.0)
    assert [row["env_steps"] for row in watched.rows] == [250, 500, 750, 1000, 1250]
    # the last 100 episodes of 1000 and 1250 are the first whose mean is 1000
    assert load("measuring.learning").first_reached(watched.rows, 1000.0) == 1250
    assert watched.started_s < watched.first_step_s < watched.rows[-1]["time_s"]


def test_a_peer_that_fails_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peer = peer_without_environment(monkeypatch, tmp_path, "raise SystemExit('no such environment')")
    peers = load("measuring.peers")
    with pytest.raises(peers.PeerError, match="no such environment"):
        peers.run_peer(peer, seed=1, goal=None, min_s=0.0, max_s=1.0)


def test_rows_are_read_as_they_are_completed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = load("measuring.watching").RowFile(path)
    assert rows.new_rows() == []
    path.write_text('{"a": 1}\n{"a": ')
    assert rows.new_rows() == [{"a": 1}]
    with open(path, "a") as file:
        file.write("2}\n")
    assert rows.new_rows() == [{"a": 2}]
    assert rows.new_rows() == []


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
