"""`hpc-marl cluster init`: what it chooses, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

import pytest
import yaml

from hpc_marl.cli import main
from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import ClusterConfig, build
from hpc_marl.errors import ConfigError, LaunchError
from hpc_marl.launch.site_survey import (
    SiteSurvey,
    parse_associations,
    parse_partitions,
    parse_qos,
    parse_settings,
)
from hpc_marl.site import shared_directories
from hpc_marl.site.cluster_init import write_profile
from hpc_marl.site.cluster_profile import choose_profile, common_network, profile_text
from hpc_marl.site.shared_directories import SharedRoot, candidate_directories, find_shared_root
from tests.unit.launch.site_texts import ASSOCIATIONS, CONFIG, NODES, PARTITIONS, QOS

ROOT = SharedRoot("${oc.env:SCRATCH}", "On lustre.")


@pytest.fixture
def survey() -> SiteSurvey:
    return SiteSurvey(
        parse_settings(CONFIG),
        parse_partitions(PARTITIONS, NODES),
        parse_associations(ASSOCIATIONS),
        "marl",
        parse_qos(QOS),
    )


def test_the_profile_chooses_what_this_user_may_use(survey: SiteSurvey) -> None:
    profile = choose_profile(survey)
    assert profile.cpu_partition == "long", "debug is too short, scavenge of a lower tier"
    assert profile.gpu_partition == "a100", "h100 belongs to others, old is down"
    assert profile.gpu_request == "gres=gpu:a100:{gpus}" and profile.time_limit == "12:00:00"
    assert profile.directives == {}, "there is a default account"


def test_jobs_get_an_account_where_there_is_no_default(survey: SiteSurvey) -> None:
    assert choose_profile(dataclasses.replace(survey, default_account="")).directives == {"account": "marl"}


def test_jobs_get_a_qos_where_the_default_is_refused(survey: SiteSurvey) -> None:
    partitions = parse_partitions(
        "PartitionName=only AllowQos=long,short Default=YES MaxTime=1-0 State=UP",
        NODES.replace("long|", "only|"),
    )
    assert choose_profile(dataclasses.replace(survey, partitions=partitions)).directives == {"qos": "long"}


def test_a_site_that_takes_no_jobs_of_ours(survey: SiteSurvey) -> None:
    down = parse_partitions(PARTITIONS.replace("State=UP", "State=DRAIN"), NODES)
    with pytest.raises(ConfigError, match="no partition is up and open to this user; there are: debug, long"):
        choose_profile(dataclasses.replace(survey, partitions=down))


def test_the_file_can_be_read_and_says_what_was_found(survey: SiteSurvey) -> None:
    text = profile_text("alpine", survey, choose_profile(survey), ROOT)
    cluster = build(ClusterConfig, yaml.safe_load(text))
    assert cluster.kind == "slurm" and cluster.port_range == (60001, 63000)
    assert cluster.shared_root == "${oc.env:SCRATCH}" and cluster.time_limit == "12:00:00"
    assert "Slurm 24.05.4" in text and "a100: 2 x 48 CPUs, 512000 MB; 8 GPUs a100, 1 GPUs a30" in text
    assert "Accounts of yours: marl, vision; QOS: normal (at most 200 jobs), long (at most 10 jobs)." in text
    assert "# directives: {account: name, qos: name}" in text and "No default memory" in text


def test_the_interface_is_the_network_of_all_nodes() -> None:
    networks = [ipaddress.IPv4Network("10.1.0.0/16"), ipaddress.IPv4Network("192.168.0.0/24")]
    assert common_network(["10.1.0.1", "10.1.9.9"], networks) == "10.1.0.0/16"
    assert common_network(["10.1.0.1", "192.168.0.7"], networks) is None
    assert common_network(["10.2.0.1"], networks) is None
    assert common_network(["no-such-host.invalid"], networks) is None
    assert common_network([], networks) is None


def test_candidates_on_network_filesystems_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, home = tmp_path / "scratch", tmp_path / "home"
    scratch.mkdir()
    home.mkdir()
    for name in shared_directories._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCRATCH", str(scratch))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WORK", str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    types = {scratch: "ext4", home: "nfs4", tmp_path: "xfs"}
    monkeypatch.setattr(shared_directories, "mount_of", lambda path: (types[path], ""))
    found = [one.spelling for one in candidate_directories()]
    assert found == ["${oc.env:HOME}", "${oc.env:SCRATCH}", str(tmp_path)]


def srun(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an srun on PATH that runs `script` with srun's arguments."""
    (directory / "srun").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


# Drops srun's own options, and runs the command.
RUN = 'while [ "$1" != /bin/sh ]; do shift; done; exec "$@"'


def test_a_job_looks_whether_the_directory_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survey: SiteSurvey
) -> None:
    root = tmp_path / "shared"
    root.mkdir()
    monkeypatch.setenv("SITE_ROOT", str(tmp_path))
    srun(tmp_path, monkeypatch, RUN)
    found = find_shared_root("${oc.env:SITE_ROOT}/shared", survey, "long", {})
    assert (
        found.spelling == "${oc.env:SITE_ROOT}/shared"
        and "a job on a node of long has seen it" in found.remark
    )
    srun(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(ConfigError, match=r"sees none of .* as this machine does; .*--shared-root DIR"):
        find_shared_root(str(root), survey, "long", {})
    srun(tmp_path, monkeypatch, "echo 'srun: error: Unable to allocate resources' >&2; exit 1")
    assert "NOT VERIFIED" in find_shared_root(str(root), survey, "long", {}).remark
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("text", ["${oc.env:HPC_MARL_NO_SUCH}", "/proc/nowhere"])
def test_a_shared_root_that_is_none(text: str, survey: SiteSurvey) -> None:
    with pytest.raises(ConfigError, match="--shared-root"):
        find_shared_root(text, survey, "long", {})


def test_the_command_writes_and_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], survey: SiteSurvey
) -> None:
    monkeypatch.setattr("hpc_marl.site.cluster_init.survey_site", lambda: survey)
    monkeypatch.setattr(
        "hpc_marl.site.cluster_init.find_shared_root", lambda *_: SharedRoot(str(tmp_path), "here")
    )
    arguments = ["cluster", "init", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert f"hpc-marl doctor cluster=alpine --config-dir {tmp_path}" in capsys.readouterr().out
    config = compose_experiment(["cluster=alpine"], tmp_path)
    assert config.cluster.gpu_partition == "a100" and config.cluster.shared_root == str(tmp_path)
    assert main(arguments) == 2
    assert "alpine.yaml exists; replace it by --force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert main(["cluster", "init", "../x", "--output", str(tmp_path)]) == 2
    assert "profile name '../x'" in capsys.readouterr().err


def test_without_slurm_it_is_the_wrong_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["cluster", "init", "--output", str(tmp_path)]) == 2
    assert "no sinfo, scontrol, sbatch on this machine" in capsys.readouterr().err
    with pytest.raises(LaunchError):
        write_profile(None, tmp_path, None, False)
