"""DARE with TIES: drop entries at random, rescale, then elect a sign and average what agrees.

Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3, with the sign vote of Yadav et al.
2023, https://arxiv.org/abs/2306.01708.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.consensus import elect_and_average
from mergeops.methods.fused import Drops, Formula
from mergeops.methods.sparsify import check_match_norm, drop_random, multiply, norm_factors
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DareTies:
    """Parameters of ``dare_ties``."""

    weight: float = 1.0
    """Weight of a source that sets none: in the vote and in the mean."""
    density: float = 0.5
    """Probability that an entry of a task vector stays (one minus the paper's drop rate)."""
    rescale: bool = True
    """Divide what stays by the density, as in the paper."""
    match_norm: bool = False
    """Rescale so that each task vector keeps its L1 norm over the tensor, instead."""
    normalize: bool = True
    """Average over the sources that agree with the elected sign; else add them up."""
    scale: float = 1.0
    """Factor on the merged task vector."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)
        check_match_norm(self.rescale, self.match_norm)


def statistics(scan: Scan, p: DareTies, at: Place) -> tuple[float, ...] | None:
    """Each task vector's factor, where norms are matched."""
    if not p.match_norm:
        return None

    def drop(deltas: Tensor, offset: int) -> Tensor:
        return _drop(deltas, p, at, offset)

    sparse = Formula([1.0] * len(at.keys), drops=Drops.of(p, at))
    return norm_factors(scan, drop, sparse)


def formula(p: DareTies, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=at.statistics,
        drops=Drops.of(p, at),
        vote=True,
        normalize=p.normalize,
    )


@method(
    "dare_ties",
    source_parameters=("weight", "density"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=formula,
)
def merge(base: Tensor, sources: Tensor, p: DareTies, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives weights, densities, random keys and offset.

    Returns:
        ``[m]``; entries that every source dropped stay at ``base``.
    """
    sparse = _drop(sources - base, p, at, at.offset)
    if at.statistics is not None:
        sparse = multiply(sparse, at.statistics)
    change = elect_and_average(sparse, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale


def _drop(deltas: Tensor, p: DareTies, at: Place, offset: int) -> Tensor:
    rescale = p.rescale and not p.match_norm
    return drop_random(deltas, at.per_source["density"], at.keys, offset, rescale=rescale)
