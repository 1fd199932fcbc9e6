"""Where the arithmetic is done, and by how many lanes."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mergeops.errors import ConfigError
from mergeops.kernels import BLOCK
from mergeops.lazy_torch import torch

MAX_LANES = 16
CUDA_LANES = 4
"""For each device: enough to have both copy directions and the arithmetic under way at a time."""
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 21}
"""Elements at a time: about what a processor's cache holds, many enough for a GPU's launches."""
LANE_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""What inputs under way may take of the machine's memory, all lanes together: many of them get
small chunks."""
ENTRY_BYTES = {"cpu": 12, "cuda": 8}
"""For each entry under way: as stored, at most (for CUDA in pinned memory); on a CPU also in the
compute dtype, and what an operation makes of it."""


def is_cuda(device: str) -> bool:
    """Whether it is a CUDA device."""
    return device.startswith("cuda")


def choose_devices(name: str) -> tuple[str, ...]:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as devices that are there, ``cpu`` or ``cuda:N``.

    ``cuda``, and ``auto`` where there is one, are all CUDA devices.

    Raises:
        ConfigError: no such device.
    """
    if name == "cpu":
        return ("cpu",)
    numbered = re.fullmatch(r"cuda(?::(\d+))?", name)
    if name != "auto" and numbered is None:
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N")
    # The driver may list devices that this torch cannot use.
    count = torch.cuda.device_count() if _has_driver() and torch.cuda.is_available() else 0
    every = tuple(f"cuda:{i}" for i in range(count))
    if numbered is None:
        return every or ("cpu",)
    if int(numbered[1] or 0) >= count:
        raise ConfigError(f"device is {name!r}, but torch sees {count} CUDA device(s); try cpu")
    return every if name == "cuda" else (name,)


def is_device_failure(error: RuntimeError) -> bool:
    """Whether a device refused or failed, e.g. for want of memory."""
    return re.match(r"(CUDA|HIP) (error|out of memory)", str(error)) is not None


def _has_driver() -> bool:
    """Whether torch may find a device: without the driver's library (or ROCm's device, which torch
    calls CUDA, too) it need not be asked, nor imported."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def lane_count(devices: Sequence[str]) -> int:
    """On a CPU a lane for each processor that this process may use, or OMP_NUM_THREADS of them; on
    CUDA ``CUDA_LANES`` for each device."""
    if is_cuda(devices[0]):
        return CUDA_LANES * len(devices)
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    most = int(wanted) if wanted.isdecimal() and int(wanted) else MAX_LANES
    return min(most, MAX_LANES, len(os.sched_getaffinity(0)))


def chunk_for(parts: int, device: str, lanes: int) -> int:
    """Elements at a time: what suits the device, or less for many inputs.

    Args:
        parts: most inputs that a tensor of the result has.
        device: cpu or cuda:N.
        lanes: how many chunks are under way at a time.
    """
    kind = "cuda" if is_cuda(device) else "cpu"
    share = LANE_BYTES[kind] // lanes
    if kind == "cuda":
        # torch pins powers of two.
        share = 1 << (share.bit_length() - 1)
    fitting = share // (parts * ENTRY_BYTES[kind])
    return max(min(CHUNK[kind], fitting // BLOCK * BLOCK), BLOCK)
