"""How many file descriptors a process may have."""

from __future__ import annotations

import resource


def raise_descriptor_limit() -> None:
    """Use all the file descriptors that this process may have: every worker costs the controller a few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
