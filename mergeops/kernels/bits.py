"""In and out: stored bits to float32, float32 to saved bits, and whether all is finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WIDTH = 2048
"""Entries of a block."""
SIGN = np.uint32(1 << 31)
MAGNITUDE = np.uint32((1 << 31) - 1)
_EXPONENT = np.uint32(0x7F800000)
_ONE_EXPONENT = np.uint32(0x00800000)
_HALF = np.uint32(0x7FFF)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the types of its first call; it runs without Python's lock."""
    found: Callable[..., Any] = numba.njit(function, nogil=True, cache=True, error_model="numpy")
    return found


@compiled
def _load(flat: Array, start: int, shift: int, out: Array) -> Any:
    """Bits of float32 values into ``out``; the highest bit of the result is set if one of them is
    not finite."""
    bad = np.uint32(0)
    stored = flat[start : start + out.size]
    for i in range(out.size):
        bits = np.uint32(np.uint32(stored[i]) << np.uint32(shift))
        out[i] = bits
        bad = np.uint32(bad | np.uint32((bits & _EXPONENT) + _ONE_EXPONENT))
    return bad


@compiled
def load_all(
    flat: Array, row: int, start: int, shift: int, has_base: bool, rows: Array, w: int
) -> Any:
    """Rows ``[parts, >= w]`` (bits) of a block: the base, where there is one, and the task vectors;
    else the sources. Returns as ``_load``."""
    bad = np.uint32(0)
    for i in range(rows.shape[0]):
        bad |= _load(flat, i * row + start, shift, rows[i, :w])
    if has_base:
        values = rows.view(np.float32)
        base = values[0, :w]
        for i in range(1, rows.shape[0]):
            delta = values[i, :w]
            for j in range(w):
                delta[j] -= base[j]
    return bad


@compiled
def store(bits: Array, out: Array, start: int, shift: int) -> Any:
    """Round to the nearest, ties to even, and store; returns as ``_load``."""
    bad = np.uint32(0)
    saved = out[start : start + bits.size]
    if shift:
        for i in range(bits.size):
            odd = np.uint32(bits[i] >> np.uint32(16)) & np.uint32(1)
            rounded = np.uint32(np.uint32(bits[i] + _HALF) + odd)
            saved[i] = rounded >> np.uint32(16)
            bad = np.uint32(bad | np.uint32((rounded & _EXPONENT) + _ONE_EXPONENT))
    else:
        for i in range(bits.size):
            saved[i] = bits[i]
            bad = np.uint32(bad | np.uint32((bits[i] & _EXPONENT) + _ONE_EXPONENT))
    return bad
