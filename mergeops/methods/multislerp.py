"""Multi-SLERP: the direction of the sources' weighted mean, with the mean of their lengths.

Buss and Fillmore 2001, https://doi.org/10.1145/502122.502124, section 2 (spherical averages), in
its first step: unit vectors are averaged and projected back to the sphere. A step in the tangent
space there, taken with the same weights, is zero: what the mean has beside its own direction is
nothing. With a base, the task vectors are averaged so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.reduction import gram, length_of_sum, vectors
from mergeops.methods.steps.weighting import check_normalize, shares, weighted_sum
from mergeops.schema import check_range


@dataclass(frozen=True)
class MultiSlerp:
    """Parameters of ``multislerp``."""

    weight: float = 1.0
    """Weight of a source that sets none."""
    normalize_weights: bool = True
    """Divide the weights by their sum."""
    eps: float = 1e-8
    """Added to lengths; a mean direction shorter than this counts as none."""

    def __post_init__(self) -> None:
        check_range("method.eps", self.eps, 0.0, None)


def factors(scan: Scan, p: MultiSlerp, at: MethodView) -> list[float]:
    """The factor of each source (or task vector) in the result."""
    weights = at.per_source["weight"]
    if p.normalize_weights:
        weights = shares(weights)
    products = gram(scan)
    n = len(products)
    # Each vector's factor in the weighted sum of the unit vectors.
    lengths = [math.sqrt(products[i][i]) for i in range(n)]
    units = [
        weight / (length + p.eps) if length > 0 else 0.0
        for weight, length in zip(weights, lengths, strict=True)
    ]
    # Length of that sum, whose direction is the mean direction.
    mean = length_of_sum(units, products)
    if mean <= p.eps:
        return list(weights)
    # Weighted mean of the lengths: how far to go in the mean direction.
    length = math.fsum(w * of_one for w, of_one in zip(weights, lengths, strict=True))
    return [unit / mean * length for unit in units]


def formula(p: MultiSlerp, at: MethodView, n: int) -> Formula:
    """The factors as weights."""
    return Formula(at.statistics)


@method(
    "multislerp",
    source_parameters=("weight",),
    optional_base=True,
    statistics=factors,
    formula=formula,
    check=check_normalize("multislerp", "normalize_weights"),
)
def merge(base: Tensor | None, sources: Tensor, p: MultiSlerp, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, or None to average the weights themselves.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the factors.

    Returns:
        ``[m]``. The weighted sum where the directions cancel and so have no mean.
    """
    change = weighted_sum(vectors(base, sources), at.statistics)
    return change if base is None else base + change
