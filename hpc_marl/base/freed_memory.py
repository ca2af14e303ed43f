"""What a process does with memory that it no longer needs."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # numbers of malloc.h
_LARGEST = 2**31 - 1
_TOP_PAD_BYTES = 2**26


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next array as large as the last.

    glibc hands arrays of tens of MB back to the system at once, and each new one comes page by page, zeroed: in an
    update on images that takes longer than the convolutions. From then on the process's memory stays at its highest.
    Without glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
    mallopt(_TOP_PAD, _TOP_PAD_BYTES)
