"""What is read from the text of scontrol, sinfo and sacctmgr, and what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_marl.config.durations import duration_s
from hpc_marl.errors import LaunchError
from hpc_marl.launch.site_survey import (
    Association,
    Gpus,
    Qos,
    ask,
    parse_associations,
    parse_partitions,
    parse_qos,
    parse_settings,
    survey_site,
)
from tests.unit.launch.site_texts import ASSOCIATIONS, CONFIG, NODES, PARTITIONS, QOS


def test_settings_are_read_by_name() -> None:
    settings = parse_settings(CONFIG)
    assert settings["ClusterName"] == "alpine" and settings["MaxArraySize"] == "1001"
    assert settings["SlurmctldParameters"] == "(null)" and "Slurmctld(primary) at mgmt1 is UP" not in settings


def test_partitions_have_their_nodes() -> None:
    partitions = {one.name: one for one in parse_partitions(PARTITIONS, NODES)}
    assert list(partitions) == ["debug", "long", "scavenge", "a100", "h100", "old"]
    debug, gpus, old = partitions["debug"], partitions["a100"], partitions["old"]
    assert debug.is_default and debug.max_time_s == 3600 and debug.tier == 5 and debug.is_up
    assert [node.is_available for node in debug.nodes] == [True, False]
    assert debug.nodes[0].address == "10.1.0.1" and partitions["long"].nodes[0].memory_mb == 256000
    assert gpus.num_gpus == 9 and gpus.gpu_types == {"a100": 8, "a30": 1}
    assert gpus.nodes[0].gpus == (Gpus("a100", 4),) and gpus.nodes[0].is_available
    assert old.gpu_types == {"": 2} and not old.is_up and not old.nodes[0].is_available
    assert partitions["scavenge"].max_time_s == float("inf")


def test_a_partition_admits_by_account() -> None:
    partitions = {one.name: one for one in parse_partitions(PARTITIONS, NODES)}
    assert partitions["a100"].admits(["marl"]) and not partitions["h100"].admits(["marl", "vision"])
    assert partitions["h100"].admits([]), "without accounting nobody knows"
    (denying,) = parse_partitions("PartitionName=x AllowAccounts=ALL DenyAccounts=marl", "")
    assert not denying.admits(["marl"]) and denying.admits(["marl", "vision"])


def test_accounts_and_qualities_of_service() -> None:
    assert parse_associations(ASSOCIATIONS) == (
        Association("marl", "", ("normal", "long"), "normal", None, 20),
        Association("vision", "", ("normal",), "", 5, None),
    )
    assert parse_qos(QOS) == (Qos("normal", 50, 200, ""), Qos("long", None, 10, "2-00:00:00"))
    assert parse_associations("garbage\n") == () and parse_qos("") == ()


@pytest.mark.parametrize("text", ["", "UNLIMITED", "INFINITE", "1:x", "x-1"])
def test_what_is_no_duration_is_no_limit(text: str) -> None:
    assert duration_s(text) == float("inf")


def plant(directory: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Make these the only commands there are."""
    directory.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


def printing(text: str) -> str:
    """Return the script that prints a text without any other command."""
    quoted = text.replace("'", "'\\''")
    return f"printf '%s' '{quoted}'"


def test_the_survey_asks_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = f'if [ "$2" = config ]; then {printing(CONFIG)}; else {printing(PARTITIONS)}; fi'
    accounts = printing(ASSOCIATIONS)
    sacctmgr = f'case "$3" in assoc) {accounts};; user) {printing("vision")};; qos) {printing(QOS)};; esac'
    plant(
        tmp_path / "bin",
        monkeypatch,
        scontrol=scontrol,
        sinfo=printing(NODES),
        sbatch="exit 1",
        sacctmgr=sacctmgr,
    )
    survey = survey_site()
    assert survey.cluster_name == "alpine" and survey.accounts == ["vision", "marl"]
    assert survey.default_partition is survey.partition("debug") is survey.partition(None)
    assert survey.partition("nope") is None and survey.qos == parse_qos(QOS)


def test_without_accounting_the_survey_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = f'if [ "$2" = config ]; then {printing(CONFIG)}; else {printing(PARTITIONS)}; fi'
    sacctmgr = "echo 'You are not running a supported accounting_storage plugin' >&2; exit 1"
    plant(
        tmp_path / "bin",
        monkeypatch,
        scontrol=scontrol,
        sinfo=printing(NODES),
        sbatch="exit 1",
        sacctmgr=sacctmgr,
    )
    survey = survey_site()
    assert survey.associations is None and survey.qos is None and survey.accounts == []


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "bin", monkeypatch, scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(LaunchError, match=r"no sinfo, sbatch on this machine; .* login node"):
        survey_site()
    with pytest.raises(LaunchError, match=r"scontrol show config failed: Unable to contact"):
        ask(["scontrol", "show", "config"])
