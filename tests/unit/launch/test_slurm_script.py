"""The scripts of the three placements, and what a site does to their directives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import ConfigError, LaunchError
from hpc_marl.launch import make_plan
from hpc_marl.launch.sbatch_script import Submission, make_submissions, script_text
from tests.unit.launch.slurm_fakes import experiment

GOLDEN = Path(__file__).parent / "golden"
RUN = RunDirectory("/shared/runs", "lab", "seed1")
SITE: dict[str, Any] = {
    "setup": ("module purge", "module load python/3.11"),
    "environment": {"NCCL_DEBUG": "WARN", "GREETING": "it's two words", "DISPLAY": None},
    "directives": {"account": "marl", "requeue": None, "mail_type": ["END", "FAIL"], "wckey": "marl"},
    "core_directives": {"exclusive": True, "mem-per-cpu": "2G", "time": "1-00:00:00"},
    "actor_directives": {"cpus-per-task": None, "constraint": "a|b", "comment": "two words"},
    "gpu_request": "gpus-per-node=a100:{gpus}",
    "srun_args": ("--mpi=none",),
    "array_parallelism": 2,
    "signal_lead_s": 300,
}


def scripts(
    config: ExperimentConfig, slots: list[int] | None = None, dependency: str = "", max_array_size: int = 1001
) -> list[str]:
    plan = make_plan(config)
    wanted = slots or [slot.index for job in plan.jobs for slot in job.slots]
    return [
        script_text(
            submission, config.cluster, RUN, working_directory="/shared/project", dependency=dependency
        )
        for submission in make_submissions(plan, wanted, max_array_size, config.cluster.array_parallelism)
    ]


@pytest.mark.parametrize(
    ("name", "config", "slots", "dependency"),
    [
        ("split_core", experiment("split"), [0], ""),
        ("split_actors", experiment("split"), [1, 3], "after:15"),
        ("packed", experiment("packed", trainers=2, nodes=2), None, ""),
        ("hetjob", experiment("hetjob"), None, "singleton"),
        ("site_core", experiment("split", **SITE), [0], ""),
        ("site_actors", experiment("split", **SITE), [1, 2, 3], ""),
    ],
)
def test_golden_scripts(
    name: str, config: ExperimentConfig, slots: list[int] | None, dependency: str
) -> None:
    (text,) = scripts(config, slots, dependency)
    assert text == (GOLDEN / f"{name}.sbatch").read_text()


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_wckey_is_the_sites_affair() -> None:
    assert "wckey" not in "".join(scripts(experiment("split")))


def test_every_directive_can_be_removed() -> None:
    (text,) = scripts(experiment("split"), [1])
    keys = [line.removeprefix("--").partition("=")[0] for line in directives(text)]
    assert len(keys) > 8
    (bare,) = scripts(experiment("split", directives=dict.fromkeys(keys)), [1])
    assert directives(bare) == []


@pytest.mark.parametrize(
    ("directives", "line"),
    [({}, "=86400"), ({"time": "0:30:00"}, "=1800"), ({"time": "UNLIMITED"}, ""), ({"time": None}, "")],
)
def test_hosts_learn_the_time_limit_where_there_is_one(directives: dict[str, Any], line: str) -> None:
    (text,) = scripts(experiment("packed", directives=directives))
    lines = [line for line in text.splitlines() if "HPC_MARL_TIME_LIMIT_S" in line]
    assert lines == ([f"export HPC_MARL_TIME_LIMIT_S{line}"] if line else [])


def test_the_interpreter_may_be_a_command() -> None:
    (text,) = scripts(experiment("packed", python="apptainer exec image.sif python"))
    assert "\n    apptainer exec image.sif python -m hpc_marl.workers host " in text


def test_a_percent_sign_in_the_path_is_none_of_slurms() -> None:
    run = RunDirectory("/shared/50%j", "lab", "seed1")
    config = experiment("packed")
    (submission,) = make_submissions(make_plan(config), [0], 1001)
    text = script_text(submission, config.cluster, run, working_directory="/")
    assert "--output=/shared/50%%j/lab/seed1/logs/jobs/%x.%j.out" in directives(text)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"directives": {"A": "marl"}}, "long option"),
        ({"directives": {"account marl": True}}, "long option"),
        ({"directives": {"comment": "a\n#SBATCH --uid=0"}}, "one line"),
        ({"environment": {"A-B": 1}}, "cannot name a variable"),
    ],
)
def test_what_cannot_stand_in_a_script_is_refused(cluster: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scripts(experiment("packed", **cluster))


def test_large_arrays_are_split_and_share_what_may_run_at_once() -> None:
    config = experiment("split", actors=14, array_parallelism=5)
    core, *arrays = make_submissions(make_plan(config), range(8), 3, 5)
    assert core.slots == [0] and [array.slots for array in arrays] == [[1, 2, 3], [4, 5, 6], [7]]
    texts = scripts(config, max_array_size=3)[1:]
    assert [line for text in texts for line in directives(text) if "array" in line] == [
        "--array=0-2%1", "--array=0-2%1", "--array=0-0%1",
    ]  # fmt: skip
    assert "--slots 4,5,6\n" in texts[1]


def test_parts_of_a_heterogeneous_job_are_plain_jobs() -> None:
    plan = make_plan(experiment("hetjob"))
    assert [submission.is_heterogeneous for submission in make_submissions(plan, [1, 2], 0)] == [False]
    assert make_submissions(plan, [], 0) == []


def test_slots_that_are_not_and_arrays_that_cannot_be_are_refused() -> None:
    plan = make_plan(experiment("split"))
    with pytest.raises(LaunchError, match=r"no slots \[9\]"):
        make_submissions(plan, [0, 9], 1001)
    with pytest.raises(LaunchError, match="MaxArraySize=0"):
        make_submissions(plan, [1], 0)
    assert make_submissions(plan, [0], 0) == [Submission((plan.jobs[0],))]
