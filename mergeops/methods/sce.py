"""SCE: select where the sources disagree most, calculate each one's weight, erase minority signs.

Wan et al. 2024, https://arxiv.org/abs/2408.07990, section 3.3 (FuseChat).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.consensus import elect_and_average
from mergeops.methods.steps.entry_formulas import Elected
from mergeops.methods.steps.fused import Array, Bits, gram_diagonal
from mergeops.methods.steps.reduction import block_sums, total
from mergeops.methods.steps.selection import (
    KEEP_ALL,
    Cut,
    find_largest,
    keep_by_key,
    magnitude_keys,
)
from mergeops.methods.steps.varying import Variances, count_differing, keep_varying
from mergeops.schema import check_range


@dataclass(frozen=True)
class Sce:
    """Parameters of ``sce``."""

    select_topk: float = 1.0
    """Share of the entries that stay, those with the largest variance over the sources, counted
    among the entries on which the sources differ at all; 1 keeps every entry."""

    def __post_init__(self) -> None:
        check_range("method.select_topk", self.select_topk, 0.0, 1.0)


class Selection(NamedTuple):
    """What ``merge`` needs to know of the whole tensor."""

    cut: Cut
    """In variance."""
    weights: list[float]
    """Each source's share of the squared changes that stay."""


def statistics(scan: Scan, p: Sce, at: MethodView) -> Selection:
    """Where to cut, and the sources' weights."""
    cut = KEEP_ALL
    if p.select_topk < 1.0:
        # In decimals, as it is written: 0.29 of 100 entries are 29, not 28.
        wanted = int(Decimal(repr(p.select_topk)) * _count_differing(scan))
        row = [(0, wanted)]
        (cut,) = find_largest(scan, _variance_keys, row, at.numel, counted=Variances())

    def squares(base: Tensor, sources: Tensor, offset: int) -> Tensor:
        return torch.stack([block_sums(d * d) for d in _selected(base, sources, cut, offset)])

    def fused_squares(bits: Bits) -> Array | None:
        selected = keep_varying(bits, cut)
        return None if selected is None else gram_diagonal(selected)

    # Each source's share of the squares of the selected entries.
    energies = total(scan(squares, fused=fused_squares))
    whole = sum(energies)
    n = len(energies)
    return Selection(cut, [e / whole for e in energies] if whole > 0 else [1.0 / n] * n)


def formula(p: Sce, at: MethodView, n: int) -> Elected:
    """What ``merge`` does."""
    return Elected(at.statistics.weights, at.statistics.cut)


@method("sce", needs_base=True, statistics=statistics, formula=formula)
def merge(base: Tensor, sources: Tensor, p: Sce, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives offset, cut and weights.

    Returns:
        ``[m]``. Each entry's sign is that of the task vectors' plain sum; entries of the other
        sign are left out of the weighted mean.
    """
    selection: Selection = at.statistics
    # float64, since a source's weight may be smaller than float32 can hold.
    deltas = _selected(base, sources, selection.cut, at.offset)
    change = elect_and_average(deltas, selection.weights, normalize=True, vote_by_weight=False)
    return base + change.to(base.dtype)


def _selected(base: Tensor, sources: Tensor, cut: Cut, offset: int) -> Tensor:
    """The task vectors ``[n, m]`` in float64, zero where they are not selected."""
    deltas = (sources - base).double()
    if cut == KEEP_ALL:
        return deltas
    return keep_by_key(deltas, _variance_keys(base, sources, 0, offset), cut, offset)


def _count_differing(scan: Scan) -> int:
    """How many entries the sources do not agree on."""

    def look(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        return torch.count_nonzero(_variance_keys(base, sources, 0, offset))

    return sum(int(count) for count in scan(look, fused=count_differing))


def _variance_keys(base: Tensor | None, sources: Tensor, row: int, offset: int) -> Tensor:
    """Keys of the variance over the sources, rounded to float32.

    Differences from the first source make it exactly zero where all sources are equal.
    """
    apart = (sources - sources[0]).double()
    mean = torch.zeros_like(apart[0])
    for difference in apart:
        mean += difference
    mean *= 1.0 / len(apart)
    # Sum of the squared distances from the mean; over n, it is the variance.
    squares = torch.zeros_like(mean)
    for difference in apart:
        difference -= mean
        squares += difference * difference
    return magnitude_keys(squares.mul_(1.0 / len(apart)).float())
