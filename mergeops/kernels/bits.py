"""In and out: stored bits to float32, float32 to saved bits, and whether all is finite."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
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


INDEX = numba.int64
FLAG = numba.boolean
REAL = numba.float64
BITS16, BITS32 = numba.uint16[::1], numba.uint32[::1]
INTS, INT_ROWS = numba.int64[::1], numba.int64[:, ::1]
SHORTS, SHORT_ROWS = numba.int32[::1], numba.int32[:, ::1]
KEYS = numba.uint64[::1]
FLOATS = numba.float32[::1]
SUMS = numba.float64[:, ::1]
CHUNK = (BITS16, BITS32, INDEX, INDEX)
"""``low, high, row, m``: the inputs' bits, elements between two rows, entries of the chunk."""


def _version() -> int:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:7], "big")


VERSION = _version()
"""Of all kernels' text. As an argument's default it is a part of the types by which numba finds
what it compiled before: numba itself looks at one file's time only."""


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels."""
    found: Callable[..., Any] = numba.njit(function, error_model="numpy")
    return found


def kernel(*types: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for these arguments now, or load it; it runs without Python's lock."""
    signature = (*types, numba.types.Omitted(VERSION))  # type: ignore[no-untyped-call]

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        found: Callable[..., Any]
        try:
            found = numba.njit(signature, nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError:
            # No directory where numba could keep it can be written: each process compiles.
            found = numba.njit(signature, nogil=True, error_model="numpy")(function)
        return found

    return compiled


@inlined
def _load(low: Array, high: Array, start: int, out: Array) -> Any:
    """Bits of float32 values into ``out``, from those of bfloat16 or float32; the highest bit of
    the result is set if one of them is not finite."""
    bad = np.uint32(0)
    if low.size:
        stored = low[start : start + out.size]
        for i in range(out.size):
            out[i] = np.uint32(stored[i]) << np.uint32(16)
    else:
        out[:] = high[start : start + out.size]
    for i in range(out.size):
        bits = out[i]
        bad = np.uint32(bad | np.uint32((bits & _EXPONENT) + _ONE_EXPONENT))
    return bad


@inlined
def load_all(
    low: Array, high: Array, row: int, start: int, has_base: bool, rows: Array, w: int
) -> Any:
    """Rows ``[parts, >= w]`` (bits) of a block: the base, where there is one, and the task vectors;
    else the sources. Returns as ``_load``."""
    bad = np.uint32(0)
    for i in range(rows.shape[0]):
        bad |= _load(low, high, i * row + start, rows[i, :w])
    if has_base:
        values = rows.view(np.float32)
        base = values[0, :w]
        for i in range(1, rows.shape[0]):
            delta = values[i, :w]
            for j in range(w):
                delta[j] -= base[j]
    return bad


@inlined
def store(bits: Array, low: Array, high: Array, start: int) -> Any:
    """Round to the nearest, ties to even, and store; returns as ``_load``."""
    bad = np.uint32(0)
    if low.size:
        saved = low[start : start + bits.size]
        for i in range(bits.size):
            odd = np.uint32(bits[i] >> np.uint32(16)) & np.uint32(1)
            rounded = np.uint32(np.uint32(bits[i] + _HALF) + odd)
            saved[i] = rounded >> np.uint32(16)
            bad = np.uint32(bad | np.uint32((rounded & _EXPONENT) + _ONE_EXPONENT))
    else:
        high[start : start + bits.size] = bits
        for i in range(bits.size):
            bad = np.uint32(bad | np.uint32((bits[i] & _EXPONENT) + _ONE_EXPONENT))
    return bad
