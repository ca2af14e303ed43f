"""Doctor's checks: planted facts in, lines out; and the command where it stops early."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import msgspec
import pytest

from hpc_marl.base.jobs import JobState
from hpc_marl.cli import main
from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import ActorGroupConfig, ClusterConfig, ExperimentConfig, TrainerGroupConfig
from hpc_marl.errors import SecurityError
from hpc_marl.launch.plan import make_plan
from hpc_marl.launch.site_survey import (
    SiteSurvey,
    parse_associations,
    parse_partitions,
    parse_qos,
    parse_settings,
)
from hpc_marl.launch.slurm_queue import QueueRow
from hpc_marl.site import node_checks as doctor_nodes
from hpc_marl.site import site_checks as doctor_site
from hpc_marl.site.doctor import base_directory, scratch_directory
from hpc_marl.site.exchange import Reach, Reached
from hpc_marl.site.findings import Level, Line, Report, fail, ok, warn
from hpc_marl.site.machine_facts import GpuFacts, NodeFacts, gather_facts, memory_limit_mb
from hpc_marl.site.probe_jobs import Kind, node_kinds
from tests.unit.launch.site_texts import ASSOCIATIONS, CONFIG, NODES, PARTITIONS, QOS

SURVEY = SiteSurvey(
    parse_settings(CONFIG),
    parse_partitions(PARTITIONS, NODES),
    parse_associations(ASSOCIATIONS),
    "marl",
    parse_qos(QOS),
)
SITE = ClusterConfig(kind="slurm", cpu_partition="long", gpu_partition="a100", time_limit="10:00:00")
VERSIONS = {"python": "3.11.7", "numpy": "2.1.0", "torch": "2.5.0"}
FACTS = NodeFacts(
    host="c01",
    node="c01",
    executable="/opt/bin/python",
    versions=VERSIONS,
    package_directory="/opt/lib/hpc_marl",
    mount_type="nfs4",
    mount_options="rw,hard",
    free_bytes=2**40,
    free_files=10**6,
    addresses={"eth0": ["10.1.0.1"]},
    listens_at=["10.1.0.1"],
    open_files_soft=1024,
    open_files_hard=65536,
    cpus=8,
)


def changed(**values: object) -> NodeFacts:
    """The facts of a healthy node, but for these."""
    return msgspec.structs.replace(FACTS, **values)


def kind(partition: str | None = "long", gpus: int = 0) -> Kind:
    return Kind("probe", "core", partition, None, gpus)


def levels(lines: object) -> list[str]:
    """The levels of one or several lines."""
    return [line.level.value for line in ([lines] if isinstance(lines, Line) else lines)]


def with_partitions(text: str) -> SiteSurvey:
    return dataclasses.replace(SURVEY, partitions=parse_partitions(text, NODES))


@pytest.mark.parametrize(
    ("one", "survey", "level", "said"),
    [
        (kind(), SURVEY, "ok", "8 of 8 nodes up, 64 CPUs each"),
        (kind("long,scavenge"), SURVEY, "ok", "8 of 8 nodes up"),
        (kind(None), SURVEY, "ok", "1 of 2 nodes up"),
        (kind("a100", 1), SURVEY, "ok", "2 of 2 nodes up, 48 CPUs each, 8 GPUs a100, 1 GPUs a30"),
        (kind("nope"), SURVEY, "fail", "no such partition; there are: debug, long"),
        (kind("long", 1), SURVEY, "fail", "its nodes have no GPUs"),
        (kind("old"), SURVEY, "fail", "old is DOWN"),
        (kind("old"), with_partitions("PartitionName=old State=UP"), "fail", "takes jobs: drained"),
        (kind(None), with_partitions("PartitionName=long Default=NO"), "fail", "no default partition"),
    ],
)
def test_partitions(one: Kind, survey: SiteSurvey, level: str, said: str) -> None:
    line = doctor_site.kind_lines(one, survey)
    assert line.level.value == level and said in line.detail
    assert bool(line.remedy) == (level != "ok")


def found_limits(config: ExperimentConfig, survey: SiteSurvey = SURVEY) -> dict[str, Line]:
    return {line.what: line for line in doctor_site.limit_lines(make_plan(config), config.cluster, survey)}


def test_limits_that_the_plan_keeps() -> None:
    lines = found_limits(ExperimentConfig(cluster=SITE))
    assert set(levels(lines.values())) == {"ok"}
    assert "QOS normal allows 200" not in lines["number of jobs"].detail
    assert "account marl allows 20" in lines["number of jobs"].detail


def test_a_time_limit_above_the_partitions() -> None:
    site = dataclasses.replace(SITE, time_limit="1-00:00:00")
    line = found_limits(ExperimentConfig(cluster=site))["time limit core"]
    assert line.level is Level.FAIL and "long allows 12:00:00" in line.detail


def test_more_jobs_than_allowed() -> None:
    many = ActorGroupConfig(count=400, per_task=1)
    lines = found_limits(ExperimentConfig(cluster=SITE, actors=many))
    assert (
        lines["number of jobs"].level is Level.FAIL
        and "raise actors.per_task" in lines["number of jobs"].remedy
    )
    huge = ActorGroupConfig(count=3000, per_task=1)
    assert (
        "submitted as 3 arrays"
        in found_limits(ExperimentConfig(cluster=SITE, actors=huge))["job arrays"].detail
    )
    none = dataclasses.replace(SURVEY, settings={"MaxArraySize": "0"})
    assert found_limits(ExperimentConfig(cluster=SITE), none)["job arrays"].level is Level.FAIL


def test_accounts_of_others_and_no_accounting() -> None:
    site = dataclasses.replace(SITE, directives={"account": "rich"})
    line = found_limits(ExperimentConfig(cluster=site))["accounts"]
    assert line.level is Level.FAIL and "yours are: marl, vision" in line.detail
    silent = dataclasses.replace(SURVEY, associations=None, qos=None)
    assert found_limits(ExperimentConfig(cluster=SITE), silent)["accounts"].level is Level.WARN


def test_what_else_slurm_says() -> None:
    assert levels(doctor_site.command_lines(["srun"])) == ["fail"] and levels(
        doctor_site.command_lines([])
    ) == ["ok"]
    assert levels(doctor_site.controller_lines(SURVEY)) == ["ok", "warn"], "preemption without a warning"
    assert levels(doctor_site.script_lines("core", "")) == ["ok"]
    assert "Invalid qos" in doctor_site.script_lines("core", "Invalid qos specification").detail
    assert levels(doctor_site.accounting_lines("Connection refused\nmore")) == ["warn"]
    assert levels(doctor_site.accounting_lines("")) == ["ok"]


def test_every_kind_of_node_gets_one_probe() -> None:
    def kinds(config: ExperimentConfig) -> list[tuple[str, str, int]]:
        return [(one.name, one.role, one.gpus) for one in node_kinds(make_plan(config), config.cluster)]

    assert kinds(ExperimentConfig(cluster=SITE)) == [("long", "core", 0), ("a100", "core", 1)]
    trainer = TrainerGroupConfig(device="cuda")
    assert kinds(ExperimentConfig(cluster=SITE, trainer=trainer)) == [
        ("a100", "core", 1),
        ("long", "actors", 0),
    ]
    bare = ClusterConfig(kind="slurm")
    assert kinds(ExperimentConfig(cluster=bare)) == [("default", "core", 0)]
    assert [name for name, *_ in kinds(ExperimentConfig(cluster=bare, trainer=trainer))] == [
        "default-gpu",
        "default",
    ]
    packed = dataclasses.replace(SITE, placement="packed")
    assert kinds(ExperimentConfig(cluster=packed, trainer=trainer)) == [
        ("a100", "core", 1),
        ("long", "actors", 0),
    ]


@pytest.mark.parametrize(
    ("node", "level", "said"),
    [
        (FACTS, "ok", "torch 2.5.0"),
        (changed(versions={**VERSIONS, "numpy": "1.0"}), "fail", "numpy 1.0 (here 2.1.0)"),
        (changed(versions={**VERSIONS, "torch": ""}), "fail", "torch missing (here 2.5.0)"),
        (changed(executable="/usr/bin/python"), "warn", "/usr/bin/python, here /opt/bin/python"),
        (changed(package_directory="/opt/other/hpc_marl"), "fail", "hpc_marl comes from /opt/other/hpc_marl"),
    ],
)
def test_environments(node: NodeFacts, level: str, said: str) -> None:
    line = doctor_nodes.python_line("cpu", node, FACTS)
    assert line.level.value == level and said in line.detail


@pytest.mark.parametrize(
    ("output", "seen", "what", "said"),
    [
        (None, False, "shared root cpu", "as c07 sees it is not the one"),
        (None, None, "shared root cpu", "as c07 sees it is not the one"),
        ("/opt/python: No module named hpc_marl", None, "python cpu", "has no module hpc_marl"),
        ("execve(): /opt/python: No such file or directory", None, "python cpu", "does not start on c07"),
        ("Segmentation fault", None, "probe cpu", "is failed and said:\nSegmentation fault"),
        ("", True, "probe cpu", "said:\nnothing"),
    ],
)
def test_probes_that_never_spoke(output: str | None, seen: bool | None, what: str, said: str) -> None:
    row = QueueRow("7", JobState.FAILED, "", "c07", "", "me", "doctor")
    line = doctor_nodes.silence_line("cpu", row, output, seen, "/scratch")
    assert (line.level, line.what) == (Level.FAIL, what) and said in line.detail


def test_probes_that_wait() -> None:
    row = QueueRow("7", JobState.PENDING, "Resources", "", "2026-12-01T10:00:00", "me", "doctor")
    line = doctor_nodes.waiting_line("gpu", row, 60.0)
    assert line.what == "queue gpu"
    assert line.detail == "still pending after 60 s: Resources, expected to start 2026-12-01T10:00:00"
    running = dataclasses.replace(row, state=JobState.RUNNING, reason="", nodes="c01")
    assert "has said nothing" in doctor_nodes.waiting_line("gpu", running, 60.0).detail
    assert "does not know its job" in doctor_nodes.waiting_line("gpu", None, 60.0).detail


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (FACTS, "ok"),
        (changed(mount_type="lustre", mount_options="rw,flock"), "ok"),
        (changed(mount_options="rw,nocto"), "fail"),
        (changed(mount_options="rw,actimeo=60"), "ok"),
        (changed(mount_type="tmpfs"), "warn"),
    ],
)
def test_filesystems(node: NodeFacts, expected: str) -> None:
    assert levels(doctor_nodes.storage_lines(node, "cpu", "/scratch")) == [expected]


def test_room_and_limits() -> None:
    assert levels(doctor_nodes.space_lines(FACTS, "/scratch", "")) == ["ok"]
    assert levels(doctor_nodes.space_lines(FACTS, "/scratch", "over limit")) == ["warn", "ok"]
    assert levels(doctor_nodes.space_lines(changed(free_bytes=2**32), "/s", "")) == ["warn"]
    assert levels(doctor_nodes.space_lines(changed(free_files=10), "/s", "")) == ["warn"]
    assert levels(doctor_nodes.space_lines(changed(free_bytes=100, free_files=None), "/s", "")) == ["fail"]
    assert levels(doctor_nodes.limits_line("cpu", FACTS)) == ["ok"]
    tight = doctor_nodes.limits_line("cpu", changed(open_files_hard=1024, memory_limit_mb=900))
    assert tight.level is Level.WARN and "memory 900 MB" in tight.detail


def test_gpus() -> None:
    assert levels(doctor_nodes.gpu_lines("gpu", 1, GpuFacts(visible="0", count=1, cuda="12.4"))) == ["ok"]
    assert levels(doctor_nodes.gpu_lines("gpu", 1, GpuFacts(visible="0", count=0, cuda="12.4"))) == ["fail"]
    assert levels(doctor_nodes.gpu_lines("gpu", 1, GpuFacts(visible="0"))) == ["warn"]
    assert levels(doctor_nodes.gpu_lines("cpu", 0, GpuFacts())) == []
    assert levels(doctor_nodes.gpu_lines("cpu", 0, GpuFacts(problem="no libstdc++"))) == ["fail"]


def test_ways_between_machines() -> None:
    quick = Reached(address="10.1.0.1", port=5, round_trip_s=0.0004)
    silent = Reached(address="172.17.0.1", port=5, problem="no process answers there\nmore")
    line = doctor_nodes.reach_line("login", "cpu", Reach(addresses=[silent, quick]), FACTS, needed=True)
    assert line.level is Level.OK
    assert line.detail == "10.1.0.1:5 answers in 0.4 ms; silent: 172.17.0.1:5"
    line = doctor_nodes.reach_line("login", "cpu", Reach(addresses=[silent]), FACTS, needed=True)
    assert line.level is Level.FAIL and "c01 has: eth0 10.1.0.1" in line.detail
    assert (
        doctor_nodes.reach_line("cpu", "login", Reach(addresses=[silent]), FACTS, needed=False).level
        is Level.OK
    )
    deaf = changed(network_problem="interface 'ib0' matches no IPv4 address")
    line = doctor_nodes.reach_line("login", "cpu", Reach(addresses=[]), deaf, needed=True)
    assert line.level is Level.FAIL and "ib0" in line.detail


def test_times() -> None:
    assert doctor_nodes.clock_line("cpu", 0.01, 0.001).level is Level.OK
    assert doctor_nodes.clock_line("cpu", -3.0, 0.001).level is Level.WARN
    line = doctor_nodes.visibility_line("cpu", [5.1, 5.1, 5.1], [0.3, 0.3, 0.4], 5.0)
    assert line.level is Level.OK and line.detail == "there 100 ms, back 200 ms (at most 400 ms)"
    assert "round trip 300 ms" in doctor_nodes.visibility_line("cpu", [0.1], [0.3], None).detail
    assert doctor_nodes.visibility_line("cpu", [30.0], [31.0], None).level is Level.WARN


def test_the_memory_limit_is_the_least_of_all_groups(tmp_path: Path) -> None:
    assert memory_limit_mb(tmp_path) is None
    group = tmp_path / "sys/fs/cgroup/job/step"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu:/job\n0::/job/step\n")
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text(f"{512 * 2**20}\n")
    assert memory_limit_mb(tmp_path) == 512
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job\n")
    old = tmp_path / "sys/fs/cgroup/memory/job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert memory_limit_mb(tmp_path) is None


def test_facts_of_this_machine(tmp_path: Path) -> None:
    facts = gather_facts(tmp_path, ("10.0.0.1",), 7)
    assert facts.versions["numpy"] and facts.versions["hpc-marl"] and facts.free_bytes and facts.cpus
    assert facts.addresses and facts.mount_type != "unknown" and facts.open_files_hard


def test_the_report_prints_and_counts() -> None:
    output = io.StringIO()
    report = Report(output)
    report.add([ok("a", "fine"), warn("b", "first\nsecond", "do this")])
    assert not report.has_failed and report.summary() == "1 ok, 1 warn, 0 fail: ready for runs"
    report.add(fail("c", "broken", "mend it"))
    assert report.has_failed and "runs would fail here" in report.summary()
    indent = " " * 28
    assert output.getvalue().splitlines()[:4] == [
        f"ok    {'a':<20}  fine",
        f"warn  {'b':<20}  first",
        f"{indent}second",
        f"{indent}-> do this",
    ]


def test_the_scratch_directory_is_private_and_goes(tmp_path: Path) -> None:
    config = compose_experiment([f"cluster.shared_root={tmp_path}"])
    assert base_directory(config) == tmp_path, "runs/ is not there yet"
    (tmp_path / "runs").mkdir(mode=0o700)
    assert base_directory(config) == tmp_path / "runs"
    with pytest.raises(ZeroDivisionError), scratch_directory(tmp_path) as directory:
        assert directory.path.stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    tmp_path.chmod(0o777)
    with pytest.raises(SecurityError), scratch_directory(tmp_path):
        pass
    tmp_path.chmod(0o700)


def test_the_command_needs_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    assert "name a Slurm site" in capsys.readouterr().err
    assert main(["doctor", "cluster=nowhere"]) == 2


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "cluster.kind=slurm"]) == 1
    assert "no sbatch, srun, squeue" in capsys.readouterr().out
