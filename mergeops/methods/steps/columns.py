"""Sums down the columns of a tensor that comes in chunks which cut it anywhere.

A column crosses all chunks, so no fixed tree of additions exists that follows them. Instead a first
pass finds each column's largest magnitude, and a second one adds whole multiples of a step that is
fine enough for it: integers add up to the same sum in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import FusedLook, Look, Scan
from mergeops.methods.steps.reduction import pairs, vectors

_BITS = 62
"""An int64 holds sums below 2**63."""
_MOST_SCALE = 1000
"""Largest power of two by which products are multiplied: float64 ends at 2**1023."""
WIDTH = 1 << 20
"""Columns at a time, which take about 150 bytes each; tensors of three dimensions have millions."""


def column_products(scan: Scan, columns: int, length: int) -> Iterator[Tensor]:
    """Dot products of the columns of all pairs of vectors, ``WIDTH`` columns after the others.

    Args:
        scan: passes over a tensor ``[length, columns]``.
        columns: entries between two of one column.
        length: entries of a column.

    Yields:
        ``[k, <= WIDTH]`` float64, k as ``reduction.pairs`` counts: of task vectors where there is a
        base, of the sources elsewhere. Each is right to about ``length / 2**62`` of the largest
        product that the column could hold.
    """
    if columns <= WIDTH:
        yield _products(scan, columns, length)
        return
    for first in range(0, columns, WIDTH):
        last = min(first + WIDTH, columns)
        yield _products(_narrowed(scan, columns, length, first, last), last - first, length)


def _narrowed(scan: Scan, columns: int, length: int, first: int, last: int) -> Scan:
    """Passes over the columns from ``first`` to before ``last``, as if there were no others."""

    def narrowed(
        look: Look, start: int = 0, stop: int | None = None, *, fused: FusedLook | None = None
    ) -> Iterator[Tensor]:
        for row in range(length):
            begin = row * columns + first
            shift = row * (last - first) - begin

            def moved(
                base: Tensor | None, sources: Tensor, offset: int, shift: int = shift
            ) -> Tensor:
                return look(base, sources, offset + shift)

            yield from scan(moved, begin, begin + last - first)

    return narrowed


def _products(scan: Scan, columns: int, length: int) -> Tensor:
    """``column_products`` of all columns at a time."""

    def look_for_largest(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        return _fold(vectors(base, sources).abs().double(), offset, columns, largest=True)

    # Largest magnitude of each vector in each column.
    bounds: Tensor | None = None
    for part, start in map(_unpack, scan(look_for_largest)):
        if bounds is None:
            bounds = torch.zeros(len(part), columns, dtype=torch.float64)
        index = (torch.arange(part.shape[1]) + start) % columns
        bounds[:, index] = torch.maximum(bounds[:, index], part)
    assert bounds is not None, "a tensor without entries has no columns"
    # No product of a column is larger than that of its bounds, which is below 2**exponent; so the
    # sum of its ``length`` products, times 2**scale, is at most 2**62.
    of_pairs = pairs(len(bounds))
    _, exponents = torch.frexp(torch.stack([bounds[i] * bounds[j] for i, j in of_pairs]))
    scale = _BITS - math.ceil(math.log2(length)) - exponents.double()
    factors = torch.exp2(scale.clamp_(max=_MOST_SCALE))

    def look(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        rows = vectors(base, sources).double()
        m = rows.shape[1]
        products = torch.stack([rows[i] * rows[j] for i, j in of_pairs])
        products *= spread(factors, offset, m).to(rows.device)
        return _fold(products.round_().to(torch.int64), offset, columns, largest=False)

    sums = torch.zeros(len(of_pairs), columns, dtype=torch.int64)
    for part, start in map(_unpack, scan(look)):
        sums[:, (torch.arange(part.shape[1]) + start) % columns] += part
    return sums.double() / factors


def spread(values: Tensor, offset: int, m: int) -> Tensor:
    """The value of its column for each entry of a chunk: ``[..., columns]`` -> ``[..., m]``."""
    columns = values.shape[-1]
    start = offset % columns
    repeats = -(-(start + m) // columns)
    if repeats > 1:
        values = values.repeat(*[1] * (values.dim() - 1), repeats)
    return values[..., start : start + m]


def _fold(values: Tensor, offset: int, columns: int, *, largest: bool) -> Tensor:
    """Combine a chunk's entries of one column; the result's last column says where it starts."""
    k, m = values.shape
    start = offset % columns
    if m > columns:
        after = -(start + m) % columns
        grid = torch.nn.functional.pad(values, (start, after)).view(k, -1, columns)
        values = grid.amax(dim=1) if largest else grid.sum(dim=1)
        start = 0
    return torch.cat([values, values.new_full((k, 1), start)], dim=1)


def _unpack(part: Tensor) -> tuple[Tensor, int]:
    return part[:, :-1], int(part[0, -1])
