"""Stored bytes as the bits that kernels read and write."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

KERNEL_DTYPES = ("BF16", "F32")
"""What kernels read and write; other inputs are converted first."""
_NO_LOW, _NO_HIGH = np.empty(0, np.uint16), np.empty(0, np.uint32)


def bits_of(
    stored: npt.NDArray[Any], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Bytes of this format as the kernels' ``low`` (uint16 of bfloat16) and ``high`` (uint32 of
    float32), of which one is empty; None for formats that are neither."""
    if dtype == "BF16":
        return stored.view(np.uint16), _NO_HIGH
    if dtype == "F32":
        return _NO_LOW, stored.view(np.uint32)
    return None
