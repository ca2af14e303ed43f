"""Where our own YAML files are."""

from __future__ import annotations

from pathlib import Path

from hpc_marl.errors import ConfigError

PRIMARY_CONFIG = "config"


def conf_directory() -> Path:
    """Return the directory of our YAML files: inside an installed wheel, or beside the package in a clone.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / f"{PRIMARY_CONFIG}.yaml").is_file():
            return candidate
    raise ConfigError(f"no conf/{PRIMARY_CONFIG}.yaml in {package} or beside it; install hpc_marl again")
