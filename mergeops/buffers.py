"""Memory of the host that lanes and devices copy from and into."""

from __future__ import annotations

import queue

import numpy as np

from mergeops.checkpoint.reader import Bytes
from mergeops.deferred import torch
from mergeops.devices import is_cuda

_ALIGNED = 64
"""Bytes of a line of a processor's cache, and of its widest register."""


def host_buffer(nbytes: int, device: str) -> Bytes:
    """Memory that begins where a line of the cache does.

    Args:
        nbytes: size.
        device: what copies from it or into it; for CUDA it is pinned.
    """
    if is_cuda(device):
        # Pinning begins to use a device: the current one, unless one is in use.
        with torch.cuda.device(device):
            found: Bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        return found
    spare = np.empty(nbytes + _ALIGNED, np.uint8)
    skip = -spare.ctypes.data % _ALIGNED
    return spare[skip : skip + nbytes]


class BufferPool:
    """Host buffers that carry results from the lanes to who writes and hashes them.

    Args:
        count: as many as can be under way; taking one more waits.
        nbytes: size of each.
        device: what copies into them.
    """

    def __init__(self, count: int, nbytes: int, device: str) -> None:
        self._free: queue.LifoQueue[Bytes] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(host_buffer(nbytes, device))

    def take(self) -> Bytes:
        """A free buffer."""
        return self._free.get()

    def give_back(self, buffer: Bytes) -> None:
        """Make a buffer free."""
        self._free.put(buffer)
