"""The host's memory: buffers for lanes and devices, and giving back what is free."""

from __future__ import annotations

import ctypes
import functools
import os
import queue
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mergeops.checkpoint import Bytes
from mergeops.engine.devices import is_cuda
from mergeops.lazy_torch import torch

SLACK = 1 << 28
"""Bytes by which the process may grow until what is free is given back."""
_STATM = Path("/proc/self/statm")
_limit = 0

_ALIGNED = 64
"""Bytes of a line of a processor's cache, and of its widest register."""


def host_buffer(nbytes: int, device: str) -> Bytes:
    """Memory that begins where a line of the cache does; pinned where the device is CUDA."""
    if is_cuda(device):
        # Pinning begins to use a device: the current one, unless one is in use.
        with torch.cuda.device(device):
            pinned: Bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned
    spare = np.empty(nbytes + _ALIGNED, np.uint8)
    skip = -spare.ctypes.data % _ALIGNED
    return spare[skip : skip + nbytes]


def buffer_pool(count: int, nbytes: int, device: str) -> queue.LifoQueue[Bytes]:
    """Host buffers that carry results from the lanes to the threads that write and hash them.

    As many as ``count`` can be under way; getting one more waits until one is put back.
    """
    pool: queue.LifoQueue[Bytes] = queue.LifoQueue()
    for _ in range(count):
        pool.put(host_buffer(nbytes, device))
    return pool


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
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
