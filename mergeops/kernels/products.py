"""Products of the task vectors, each with each, as sums of blocks.

A block's products are added in a tree: its first half to its second half, and so on. So an entry
meets first the one half a block away, then those a quarter away. A block is gone through in tiles:
a few columns of ``STRIPS`` strips that lie equally far apart. All entries of a column meet within
the first levels of the tree; these sums, of all pairs of three vectors, never go to memory.
"""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import NO_SHIFT, SHIFT, fusing, inlined, kernel, value, written_out
from mergeops.kernels.blocks import BLOCK, COLUMNS, STRIPS
from mergeops.kernels.types import Array, Bits16, Bits32, Flag, Index, RealRows, Reals, Singles

_APART = BLOCK // STRIPS
_SLOT = STRIPS * COLUMNS
_Six = tuple[float, float, float, float, float, float]


@fusing
def _two(tile: Array, j: int, apart: int) -> _Six:
    a, b, c = np.float64(tile[j]), np.float64(tile[j + _SLOT]), np.float64(tile[j + 2 * _SLOT])
    j += apart
    u, v, w = np.float64(tile[j]), np.float64(tile[j + _SLOT]), np.float64(tile[j + 2 * _SLOT])
    # Products of two float32 are exact in float64.
    return (
        a * a + u * u,
        a * b + u * v,
        b * b + v * v,
        a * c + u * w,
        b * c + v * w,
        c * c + w * w,
    )


@written_out
def _both(s: _Six, t: _Six) -> _Six:
    return s[0] + t[0], s[1] + t[1], s[2] + t[2], s[3] + t[3], s[4] + t[4], s[5] + t[5]


@written_out
def _four(tile: Array, j: int, apart: int) -> _Six:
    sums: _Six = _both(_two(tile, j, 2 * apart), _two(tile, j + apart, 2 * apart))
    return sums


@written_out
def _eight(tile: Array, j: int, apart: int) -> _Six:
    sums: _Six = _both(_four(tile, j, 2 * apart), _four(tile, j + apart, 2 * apart))
    return sums


@written_out
def _add_tile(three: bool, tile: Array, terms: Array, column: int) -> None:
    """First levels of the tree for the products of two or three vectors."""
    for j in range(COLUMNS):
        aa, ab, bb, ac, bc, cc = _eight(tile, j, COLUMNS)
        terms[column + j] = aa
        terms[column + j + _APART] = ab
        terms[column + j + 2 * _APART] = bb
        if three:
            terms[column + j + 3 * _APART] = ac
            terms[column + j + 4 * _APART] = bc
            terms[column + j + 5 * _APART] = cc


@written_out
def _load(
    stored: Array, shift: np.uint32, begin: int, left: int, minus: bool, base: Array, slot: Array
) -> None:
    """Values ``[STRIPS * COLUMNS]``, ``minus`` the base's; zeros beyond the ``left`` ones."""
    for strip in range(STRIPS):
        at, to = strip * _APART, strip * COLUMNS
        bits = stored[begin + at : begin + at + min(max(left - at, 0), COLUMNS)]
        origin, values = base[to : to + COLUMNS], slot[to : to + COLUMNS]
        for j in range(bits.size):
            values[j] = value(bits, j, shift) - (origin[j] if minus else np.float32(0))
        for j in range(bits.size, COLUMNS):
            values[j] = 0


@written_out
def _load_tile(
    has_base: bool,
    stored: Array,
    shift: np.uint32,
    row: int,
    start: int,
    left: int,
    vectors: tuple[int, int, int],
    tile: Array,
) -> None:
    base = tile[3 * _SLOT :]
    if has_base:
        _load(stored, shift, start, left, False, base, base)
    for slot, vector in enumerate(vectors):
        if slot < 2 or vector != vectors[0]:
            begin = start + (vector + 1 if has_base else vector) * row
            target = tile[slot * _SLOT : (slot + 1) * _SLOT]
            _load(stored, shift, begin, left, has_base, base, target)


@inlined
def tree_sum(values: Array) -> float:
    """As ``reduction.row_sums`` of one row; ``values`` is overwritten."""
    width = values.size
    while width > 1:
        half = (width + 1) // 2
        for j in range(width - half):
            values[j] += values[half + j]
        width = half
    return float(values[0])


@inlined
def _multiply(
    low: Array,
    high: Array,
    row: int,
    m: int,
    has_base: bool,
    start: int,
    vectors: tuple[int, int, int],
    n: int,
    sums: Array,
    tile: Array,
    terms: Array,
) -> None:
    """Products of these vectors, each with each, over the block at ``start``; the third is the
    first again where there are two."""
    three = vectors[2] != vectors[0]
    for column in range(0, _APART, COLUMNS):
        at, left = start + column, m - start - column
        if low.size:
            if has_base:
                _load_tile(True, low, SHIFT, row, at, left, vectors, tile)
            else:
                _load_tile(False, low, SHIFT, row, at, left, vectors, tile)
        elif has_base:
            _load_tile(True, high, NO_SHIFT, row, at, left, vectors, tile)
        else:
            _load_tile(False, high, NO_SHIFT, row, at, left, vectors, tile)
        if three:
            _add_tile(True, tile, terms, column)
        else:
            _add_tile(False, tile, terms, column)
    at = 0
    for y in range(3 if three else 2):
        for x in range(y + 1):
            i, k = vectors[x], vectors[y]
            # Row of the pair (i, k) in the order of ``reduction.pairs``.
            pair = i * n - i * (i - 1) // 2 + k - i
            sums[pair, start // BLOCK] = tree_sum(terms[at : at + _APART])
            at += _APART


@kernel
def products(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    n: Index,
    has_base: Flag,
    sums: RealRows,
    tile: Singles,
    terms: Reals,
) -> bool:
    """See ``reduction.gram``.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        n: sources.
        has_base: whether the first row is the base.
        sums: ``[pairs, blocks]`` float64, for the block sums of the products of all pairs.
        tile: scratch ``[4 * STRIPS * COLUMNS]`` float32.
        terms: scratch ``[6 * BLOCK // STRIPS]`` float64.

    Returns:
        Whether all task vectors are finite.
    """
    for start in range(0, m, BLOCK):
        if n == 3:
            _multiply(low, high, row, m, has_base, start, (0, 1, 2), n, sums, tile, terms)
        elif n == 1:
            _multiply(low, high, row, m, has_base, start, (0, 0, 0), n, sums, tile, terms)
        else:
            for i in range(n):
                for k in range(i + 1, n):
                    _multiply(low, high, row, m, has_base, start, (i, k, i), n, sums, tile, terms)
    finite = True
    for i in range(n):
        # No term of its product with itself is negative: what is not finite stays.
        for total in sums[i * n - i * (i - 1) // 2]:
            finite = finite and total < np.inf
    return finite
