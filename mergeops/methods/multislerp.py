"""Multi-SLERP: the direction of the sources' weighted mean, with the mean of their lengths.

Buss and Fillmore 2001, https://doi.org/10.1145/502122.502124, section 2 (spherical averages), in
its first step: unit vectors are averaged and projected back to the sphere. A step in the tangent
space there, taken with the same weights, is zero: what the mean has beside its own direction is
nothing. With a base, the task vectors are averaged so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.reduction import gram, vectors
from mergeops.methods.weighting import check_mean, shares, weighted_sum
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


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


def check(per_source: Mapping[str, Sequence[float]], p: MultiSlerp) -> None:
    """Refuse weights that cancel."""
    if p.normalize_weights:
        check_mean("multislerp", per_source["weight"], "normalize_weights")


def factors(scan: Scan, p: MultiSlerp, at: Place) -> list[float]:
    """The factor of each source (or task vector) in the result."""
    weights = at.per_source["weight"]
    if p.normalize_weights:
        weights = shares(weights)
    products = gram(scan)
    n = len(products)
    lengths = [math.sqrt(products[i][i]) for i in range(n)]
    units = [
        weight / (length + p.eps) if length > 0 else 0.0
        for weight, length in zip(weights, lengths, strict=True)
    ]
    squares = (units[i] * units[j] * products[i][j] for i in range(n) for j in range(n))
    mean = math.sqrt(max(math.fsum(squares), 0.0))
    if mean <= p.eps:
        return list(weights)
    length = math.fsum(w * of_one for w, of_one in zip(weights, lengths, strict=True))
    return [unit / mean * length for unit in units]


@method(
    "multislerp",
    source_parameters=("weight",),
    optional_base=True,
    statistics=factors,
    check=check,
)
def merge(base: Tensor | None, sources: Tensor, p: MultiSlerp, at: Place) -> Tensor:
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
