"""TIES: trim small changes, elect a sign per entry, average what agrees.

Yadav et al. 2023, https://arxiv.org/abs/2306.01708, sections 4.1 to 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.consensus import elect_and_average
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.selection import KEEP_NONE, Cut
from mergeops.methods.steps.sparsify import find_cuts, keep_largest, norm_factors
from mergeops.methods.steps.weighting import multiply
from mergeops.schema import check_range


@dataclass(frozen=True)
class Ties:
    """Parameters of ``ties``."""

    weight: float = 1.0
    """Weight of a source that sets none: in the vote and in the mean."""
    density: float = 0.2
    """Share of each task vector's entries that stay, the largest by magnitude."""
    normalize: bool = True
    """Average over the sources that agree with the elected sign; else add them up."""
    rescale: bool = False
    """Scale what stays so that each task vector keeps its L1 norm over the tensor."""
    scale: float = 1.0
    """Factor on the merged task vector (the paper's lambda)."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)


class TiesTrim(NamedTuple):
    """How the task vectors of one tensor are trimmed."""

    cuts: tuple[Cut, ...]
    factors: tuple[float, ...]


def statistics(scan: Scan, p: Ties, at: MethodView) -> TiesTrim:
    """Where each source's task vector is trimmed, and its factor."""
    cuts = find_cuts(scan, at.per_source["density"], at.numel)
    if not p.rescale:
        return TiesTrim(cuts, (1.0,) * len(cuts))

    def keep(deltas: Tensor, offset: int) -> Tensor:
        return keep_largest(deltas, cuts, offset)

    kept = Formula([1.0] * len(cuts), windows=_windows(cuts))
    return TiesTrim(cuts, norm_factors(scan, keep, kept))


def formula(p: Ties, at: MethodView, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=at.statistics.factors,
        windows=_windows(at.statistics.cuts),
        vote=True,
        normalize=p.normalize,
    )


@method(
    "ties",
    source_parameters=("weight", "density"),
    needs_base=True,
    statistics=statistics,
    formula=formula,
)
def merge(base: Tensor, sources: Tensor, p: Ties, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives weights, offset and the cuts.

    Returns:
        ``[m]``. Exactly ``int(density * numel)`` entries of each task vector take part; entries
        that every source trimmed stay at ``base``.
    """
    trim: TiesTrim = at.statistics
    # Section 4.1: trim; 4.2 and 4.3: elect a sign and take the disjoint mean.
    trimmed = multiply(keep_largest(sources - base, trim.cuts, at.offset), trim.factors)
    change = elect_and_average(trimmed, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale


def _windows(cuts: Sequence[Cut]) -> list[tuple[Cut, Cut]]:
    """The cuts as kernels take them: without an inner one."""
    return [(cut, KEEP_NONE) for cut in cuts]
