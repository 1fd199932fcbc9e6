"""Where the arithmetic is done, and by how many lanes."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from mergeops.deferred import torch
from mergeops.errors import ConfigError

MAX_LANES = 16


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
    found = torch.cuda.device_count() if _has_driver() and torch.cuda.is_available() else 0
    every = tuple(f"cuda:{i}" for i in range(found))
    if numbered is None:
        return every or ("cpu",)
    if int(numbered[1] or 0) >= found:
        raise ConfigError(f"device is {name!r}, but torch sees {found} CUDA device(s); try cpu")
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


def lane_count() -> int:
    """One lane for each processor that this process may use, or as many as OMP_NUM_THREADS says."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    most = int(wanted) if wanted.isdecimal() and int(wanted) else MAX_LANES
    return min(most, MAX_LANES, len(os.sched_getaffinity(0)))
