"""The profile's table, values and picture say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.reports.bottleneck import Bottleneck
from hpc_marl.reports.profile import profile_markdown, profile_text, profile_values
from hpc_marl.reports.profile_files import write_profile
from hpc_marl.reports.profile_plot import plot_profile
from hpc_marl.trials.time_record import KindTime, TimeRecord, read_time_record, write_time_record

BOTTLENECK = Bottleneck("trainer", ("the trainer: it is slow", "cores are shared"))
RECORD = TimeRecord(
    run_uuid="u",
    startup_s=4.0,
    training_s=10.0,
    updates=100,
    env_steps=20_000,
    kinds={
        "trainer": KindTime(1, {"other": 0.5, "learn": 9.0, "wait_data": 0.5, "checkpoint": 0.0}, 9.5),
        "scout": KindTime(1, {"look_around": 10.0}, 1.0),
        "actor": KindTime(2, {"other": 2.0, "env": 8.0, "wait_credit": 10.0}, 10.0),
    },
)


def test_the_table_has_a_row_for_each_activity_and_what_it_costs():
    lines = profile_text(RECORD, BOTTLENECK).splitlines()
    table = [line.split() for line in lines[3 : lines.index("", 3)]]
    assert table == [
        ["actor", "x", "2", "env.step", "40.0", "%", "4.00", "400.0", "us/env_step"],
        ["other", "work", "10.0", "%", "1.00", "100.0", "us/env_step"],
        ["waiting", "for", "the", "trainer", "(credit)", "50.0", "%", "5.00", "500.0", "us/env_step"],
        ["trainer", "x", "1", "learning", "90.0", "%", "9.00", "90.00", "ms/update"],
        ["other", "work", "5.0", "%", "0.50", "5.00", "ms/update"],
        ["waiting", "for", "samples", "5.0", "%", "0.50", "5.00", "ms/update"],
        ["scout", "x", "1", "look", "around", "100.0", "%", "10.00"],
    ]
    assert "CPU used while training: actor 0.50 cores each, trainer 0.95 cores, scout 0.10 cores" in lines
    assert lines[-2:] == ["bottleneck: the trainer: it is slow", "cores are shared"]


def test_gpus_are_told_of_where_there_are_any():
    assert "GPU" not in profile_text(RECORD, BOTTLENECK) + profile_markdown(RECORD, BOTTLENECK, "exp/trial")
    kinds = {**RECORD.kinds, "trainer": replace(RECORD.kinds["trainer"], device_s=4.0)}
    record = replace(RECORD, kinds=kinds)
    line = "GPU at work while training: trainer 40 % of the time"
    assert line in profile_text(record, BOTTLENECK).splitlines()
    assert f"{line}." in profile_markdown(record, BOTTLENECK, "exp/trial").splitlines()
    assert profile_values(record, BOTTLENECK)["kinds"]["trainer"]["gpu_share"] == 0.4
    assert profile_values(record, BOTTLENECK)["kinds"]["actor"]["gpu_share"] == 0.0


def test_the_page_is_a_table_in_markdown():
    page = profile_markdown(RECORD, BOTTLENECK, "exp/trial")
    assert page.startswith("# Where the time of exp/trial went\n")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert rows[2] == "| actor x 2 | env.step | 40.0 % | 4.00 | 400.0 us/env_step |"
    assert {row.count("|") for row in rows} == {6} and len(rows) == 2 + 7
    assert "Bottleneck: the trainer: it is slow.\n\ncores are shared.\n" in page


def test_shares_add_up_to_one():
    values = profile_values(RECORD, BOTTLENECK)
    assert values["bottleneck"] == {"where": "trainer", "lines": list(BOTTLENECK.lines)}
    for kind in values["kinds"].values():
        assert sum(kind["shares"].values()) == pytest.approx(1.0)
    assert values["kinds"]["actor"]["cores"] == 1.0


@pytest.mark.parametrize("record", [RECORD, TimeRecord()])
def test_all_three_files_are_written(tmp_path: Path, record: TimeRecord):
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    path = write_profile(directory, record, BOTTLENECK)
    assert path == directory.path / "profile.md" and "profile.png" in path.read_text()
    assert json.loads((directory.path / "profile.json").read_text())["updates"] == record.updates
    assert (directory.path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_names_what_is_wide_enough(tmp_path: Path):
    """One bar for each kind, each as long as all others, in an order that does not depend on the record's."""
    figures = []
    from matplotlib.figure import Figure

    def keep(figure: Figure, path: Path, **kwargs: object) -> None:
        figures.append(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        plot_profile(RECORD, tmp_path / "p.png", title="exp/trial")
    [axes] = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["actor x 2", "trainer x 1", "scout x 1"]
    lengths: dict[float, float] = {}
    for bar in axes.patches:
        middle = bar.get_y() + bar.get_height() / 2
        lengths[round(middle)] = lengths.get(round(middle), 0.0) + bar.get_width()
    assert lengths == pytest.approx({0: 100.0, 1: 100.0, 2: 100.0})
    texts = [text.get_text() for text in axes.texts]
    assert "env.step\n40 %" in texts and "5 %" in texts


def test_a_record_comes_back_and_belongs_to_its_launch(tmp_path: Path):
    directory = RunDirectory(tmp_path, "exp", "trial")
    directory.create()
    assert read_time_record(directory) is None
    write_time_record(directory, RECORD)
    assert read_time_record(directory) == read_time_record(directory, "u") == RECORD
    assert read_time_record(directory, "another") is None
    directory.time_use_file.write_text("{")
    assert read_time_record(directory) is None
