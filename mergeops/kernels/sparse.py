"""What a source keeps of a block: the largest entries, or entries at random."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import MAGNITUDE, inlined
from mergeops.kernels.types import Array

ALL = 1 << 31
"""Above every magnitude's bits."""
STEPS = 2.0**-31
"""Chances are multiples of this."""
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@inlined
def _clear_outside(bits: Array, low: int, high: int) -> None:
    """Zero where not ``low <= magnitude bits < high``."""
    lowest, length = np.uint32(low), np.uint32(max(high - low, 0))
    for i in range(bits.size):
        # One comparison: below the lowest, the difference wraps round.
        stays = np.uint32((bits[i] & MAGNITUDE) - lowest) < length
        bits[i] = bits[i] if stays else np.uint32(0)


@inlined
def _keep_between(bits: Array, index: int, window: Array) -> None:
    """As ``breadcrumbs.keep_between``, for one source; ``index`` is that of the first entry."""
    w = bits.size
    outer = min(max(window[1] + 1 - index, 0), w)
    inner = min(max(window[3] + 1 - index, 0), w)
    first, second = min(outer, inner), max(outer, inner)
    for begin, end in ((0, first), (first, second), (second, w)):
        if begin < end:
            low = min(window[0] + (1 if begin >= outer else 0), ALL)
            high = min(window[2] + (1 if begin >= inner else 0), ALL)
            _clear_outside(bits[begin:end], max(low, 0), max(high, 0))


@inlined
def draw(key: np.uint64, index: int, z: Array) -> None:
    """Outputs of SplitMix64 from number ``index`` on: see ``randomness.splitmix64``."""
    state = key + np.uint64(index) * _GAMMA
    for i in range(z.size):
        # Adding up is quicker than multiplying.
        state += _GAMMA
        x = (state ^ (state >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        z[i] = x ^ (x >> np.uint64(31))


@inlined
def _drop(bits: Array, draws: Array, chance: int) -> None:
    """Zero the entries whose draw is not below one chance for all."""
    limit = np.uint32(chance)
    for i in range(bits.size):
        stays = (draws[i] & MAGNITUDE) < limit
        bits[i] = bits[i] if stays else np.uint32(0)


@inlined
def _keep(bits: Array, stays: Array) -> None:
    """Zero the entries that do not stay."""
    for i in range(bits.size):
        bits[i] = bits[i] if stays[i] else np.uint32(0)


@inlined
def _drop_each(bits: Array, values: Array, draws: Array, chances: Array) -> None:
    """Zero the entries whose draw is not below their own chance; divide the others by it."""
    for i in range(bits.size):
        values[i] /= np.float32(np.float64(max(chances[i], np.int32(1))) * STEPS)
    for i in range(bits.size):
        stays = np.int32(draws[i] & MAGNITUDE) < chances[i]
        bits[i] = bits[i] if stays else np.uint32(0)


@inlined
def sparsify(
    bits: Array,
    values: Array,
    i: int,
    start: int,
    offset: int,
    windows: Array,
    limits: Array,
    keys: Array,
    chances: Array,
    stays: Array,
    random: Array,
) -> None:
    """What source ``i`` keeps of a block that starts at ``start`` of the chunk."""
    w = bits.size
    index = offset + start
    if windows.size:
        _keep_between(bits, index, windows[i])
    if limits[i] >= 0 and stays.size:
        _keep(bits, stays[i, start : start + w])
    elif limits[i] >= 0:
        skip = index % 2
        draw(keys[i], index // 2, random[: (w + skip + 1) // 2])
        draws = random.view(np.uint32)[skip : skip + w]
        if chances.size:
            _drop_each(bits, values, draws, chances[i, start : start + w])
        else:
            _drop(bits, draws, limits[i])
