"""In and out: stored bits to float32, float32 to saved bits, and whether all is finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import numba
import numpy as np

from mergeops.kernels.blocks import WIDTH as WIDTH
from mergeops.kernels.types import Array

SIGN = np.uint32(1 << 31)
MAGNITUDE = np.uint32((1 << 31) - 1)
SHIFT, NO_SHIFT = np.uint32(16), np.uint32(0)
"""From a bfloat16's or a float32's bits to those of the float32."""
_ONE_EXPONENT = np.uint32(0x00800000)
_ROUNDED_UP = np.uint32(0x00808000)
_HALF = np.uint32(0x7FFF)


KERNELS: dict[str, tuple[tuple[Any, ...], Callable[..., Any]]] = {}
"""Name -> types of the arguments, function."""


OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""Without numba's runtime no array can be made, and none is counted; only kernels call the parts of
kernels, so nothing is made for other callers."""


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels."""
    part: Callable[..., Any] = numba.njit(function, **OPTIONS)
    return part


def written_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels of which each call gets its own code, made for the constants it gives."""
    part: Callable[..., Any] = numba.njit(function, **OPTIONS, forceinline=True)
    return part


def fusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ``written_out``; a product and a sum may become one instruction with one rounding, which
    gives the same bits where the product is exact."""
    part: Callable[..., Any] = numba.njit(
        function, **OPTIONS, forceinline=True, fastmath={"contract"}
    )
    return part


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function to be compiled for the ``types`` of its arguments; it runs without Python's
    lock."""
    hints = get_type_hints(function, include_extras=True)
    types = tuple(hint.__metadata__[0] for name, hint in hints.items() if name != "return")
    KERNELS[function.__name__] = types, function
    return function


@written_out
def value(stored: Array, j: int, shift: np.uint32) -> np.float32:
    """One stored entry."""
    entry: np.float32 = np.uint32(np.uint32(stored[j]) << shift).view(np.float32)
    return entry


@inlined
def _load(stored: Array, shift: np.uint32, values: Array) -> Any:
    """Stored bits as float32 values; returns the largest magnitude's bits."""
    most = np.uint32(0)
    for j in range(values.size):
        bits = np.uint32(np.uint32(stored[j]) << shift)
        values[j] = bits.view(np.float32)
        most = max(most, np.uint32(bits & MAGNITUDE))
    return most


@inlined
def _load_delta(stored: Array, shift: np.uint32, base: Array, delta: Array) -> Any:
    """Stored bits' difference from ``base``; returns as ``_load``."""
    most = np.uint32(0)
    for j in range(delta.size):
        bits = np.uint32(np.uint32(stored[j]) << shift)
        delta[j] = bits.view(np.float32) - base[j]
        most = max(most, np.uint32(bits & MAGNITUDE))
    return most


@inlined
def load_all(
    low: Array, high: Array, row: int, start: int, has_base: bool, rows: Array, w: int
) -> Any:
    """Rows ``[parts, >= w]`` (bits) of a block: the base, where there is one, and the task vectors;
    else the sources. The highest bit of the result is set if an input is not finite."""
    values = rows.view(np.float32)
    base = values[0, :w]
    most = np.uint32(0)
    for i in range(rows.shape[0]):
        begin = i * row + start
        end = begin + w
        if has_base and i:
            if low.size:
                largest = _load_delta(low[begin:end], SHIFT, base, values[i, :w])
            else:
                largest = _load_delta(high[begin:end], NO_SHIFT, base, values[i, :w])
        elif low.size:
            largest = _load(low[begin:end], SHIFT, values[i, :w])
        else:
            largest = _load(high[begin:end], NO_SHIFT, values[i, :w])
        most = max(most, largest)
    return np.uint32(most + _ONE_EXPONENT)


@inlined
def store(bits: Array, low: Array, high: Array, start: int) -> Any:
    """Round to the nearest, ties to even, and store; the highest bit of the result is set if a
    saved value is not finite."""
    most = np.uint32(0)
    end = start + bits.size
    if low.size:
        saved = low[start:end]
        for j in range(bits.size):
            odd = np.uint32(bits[j] >> SHIFT) & np.uint32(1)
            saved[j] = np.uint32(np.uint32(bits[j] + _HALF) + odd) >> SHIFT
            most = max(most, np.uint32(bits[j] & MAGNITUDE))
        # From the middle between the largest value and the next power of two on, it is rounded up.
        return np.uint32(most + _ROUNDED_UP)
    stored = high[start:end]
    for j in range(bits.size):
        stored[j] = bits[j]
        most = max(most, np.uint32(bits[j] & MAGNITUDE))
    return np.uint32(most + _ONE_EXPONENT)
