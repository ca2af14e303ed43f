"""profile.md, profile.json and profile.png: what `profile=true` leaves in the trial's directory."""

from __future__ import annotations

import json
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.reports.bottleneck import Bottleneck
from hpc_marl.reports.profile import PROFILE_CHART_FILE, profile_markdown, profile_values
from hpc_marl.trials.time_record import TimeRecord

PROFILE_TEXT_FILE = "profile.md"
PROFILE_VALUES_FILE = "profile.json"


def write_profile(directory: RunDirectory, record: TimeRecord, bottleneck: Bottleneck) -> Path:
    """Write profile.md, profile.json and profile.png into the trial's directory; return the first one's path."""
    from hpc_marl.reports.profile_plot import plot_profile

    title = f"{directory.experiment_name}/{directory.trial_name}"
    values = json.dumps(profile_values(record, bottleneck), indent=1)
    path = directory.path / PROFILE_TEXT_FILE
    plot_profile(record, directory.path / PROFILE_CHART_FILE, title=title)
    atomic_write(directory.path / PROFILE_VALUES_FILE, values.encode())
    atomic_write(path, profile_markdown(record, bottleneck, title).encode())
    return path
