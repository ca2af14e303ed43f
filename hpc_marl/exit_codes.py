"""The exit codes of `hpc-marl`."""

from __future__ import annotations

from hpc_marl.errors import ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def exit_code_of(error: Exception) -> int:
    """Return 2 where the user's settings or arguments are wrong, else 1."""
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
