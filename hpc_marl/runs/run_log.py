"""logs/controller.log: what every controller of a run did."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from hpc_marl.base.run_directory import RunDirectory


@contextmanager
def controller_log(directory: RunDirectory) -> Iterator[None]:
    """Log what the controller does to logs/controller.log for the time of the context."""
    directory.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(directory.logs / "controller.log")
    handler.setFormatter(logging.Formatter("%(asctime)s controller %(levelname)s %(message)s"))
    logger = logging.getLogger("hpc_marl")
    before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the terminal belongs to the display
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate
        handler.close()
