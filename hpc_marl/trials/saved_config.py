"""Reading back the experiment that a run was launched with."""

from __future__ import annotations

import json

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig, build
from hpc_marl.errors import ConfigError


def read_config(directory: RunDirectory) -> ExperimentConfig:
    """Return the experiment in config.yaml.

    Raises:
        ConfigError: there is none, or another version of this package wrote it.
    """
    try:
        return build(ExperimentConfig, json.loads(directory.config_file.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(
            f"{directory.path} holds no run: there is no {directory.config_file.name}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{directory.config_file} cannot be read: {error}") from None
