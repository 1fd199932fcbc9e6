"""Memory that is free, but that the process still has.

glibc's malloc takes a thread's tensors from a heap of its own. A small result that stays between
two of them may leave free pieces that the next tensor does not fit into, and the heap grows with
the number of chunks: to 7.7 GB for one tensor of 4.3 GB. What is free and given back to the system
takes an address, and no memory.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

SLACK = 1 << 28
"""Bytes by which the process may grow until what is free is given back."""
_STATM = Path("/proc/self/statm")
_limit = 0


def tidy() -> None:
    """Give free memory back where the process has grown since that was done; else look only."""
    global _limit
    trim = _trim()
    if trim is not None and anonymous_bytes() > _limit:
        trim(0)
        _limit = anonymous_bytes() + SLACK


def anonymous_bytes() -> int:
    """Memory of this process's own, without mapped files."""
    _, resident, shared, *_ = map(int, _STATM.read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's function; None with another C library or another system."""
    if not _STATM.exists():
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
