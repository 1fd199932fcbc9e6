"""DELLA: drop small changes more likely than large ones, elect a sign, average what agrees.

Deep et al. 2024, https://arxiv.org/abs/2406.11617, section 3 (MagPrune, Elect, Fuse).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.consensus import elect_and_average
from mergeops.methods.fused import Drops, Formula, Matched
from mergeops.methods.ranks import drop_by_rank
from mergeops.methods.sparsify import always, check_match_norm, multiply, norm_factors
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Della:
    """Parameters of ``della``."""

    weight: float = 1.0
    """Weight of a source that sets none: in the vote and in the mean."""
    density: float = 0.5
    """Mean probability that an entry of a task vector stays."""
    epsilon: float = 0.15
    """How far the probability goes up for the largest entry of a row, and down for the smallest;
    it gives way where this would leave 0 to 1."""
    rescale: bool = True
    """Divide what stays by its probability, as in the paper."""
    match_norm: bool = False
    """Rescale so that each task vector keeps its L1 norm over the tensor, instead."""
    normalize: bool = True
    """Average over the sources that agree with the elected sign; else add them up."""
    scale: float = 1.0
    """Factor on the merged task vector."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)
        check_range("method.epsilon", self.epsilon, 0.0, 1.0)
        check_match_norm(self.rescale, self.match_norm)


def statistics(scan: Scan, p: Della, at: Place) -> Matched | None:
    """Each task vector's factor, where norms are matched, and what is dropped."""
    if not p.match_norm:
        return None

    def drop(deltas: Tensor, offset: int) -> Tensor:
        return _drop(deltas, p, at, offset)

    drops = Drops.of(p, at)
    sparse = Formula([1.0] * len(at.keys), drops=drops)
    return Matched(norm_factors(scan, drop, sparse, row_length=at.row_length), drops)


def formula(p: Della, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    matched: Matched | None = at.statistics
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=matched.factors if matched else None,
        drops=matched.drops if matched else Drops.of(p, at),
        vote=True,
        normalize=p.normalize,
    )


@method(
    "della",
    source_parameters=("weight", "density", "epsilon"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=formula,
    whole_rows=always,
)
def merge(base: Tensor, sources: Tensor, p: Della, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, whole rows, recipe order.
        p: parameters.
        at: gives weights, densities, widths, random keys, offset and the length of a row.

    Returns:
        ``[m]``; entries that every source dropped stay at ``base``.
    """
    sparse = _drop(sources - base, p, at, at.offset)
    if at.statistics is not None:
        sparse = multiply(sparse, at.statistics.factors)
    change = elect_and_average(sparse, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale


def _drop(deltas: Tensor, p: Della, at: Place, offset: int) -> Tensor:
    return drop_by_rank(
        deltas,
        at.per_source["density"],
        at.per_source["epsilon"],
        at.keys,
        offset,
        at.row_length,
        rescale=p.rescale and not p.match_norm,
    )
