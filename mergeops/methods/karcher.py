"""Karcher mean: the point of the sphere nearest to all sources along arcs, at their mean length.

Karcher 1977, https://doi.org/10.1002/cpa.3160300502; by the iteration of Buss and Fillmore 2001,
https://doi.org/10.1145/502122.502124, section 3.2 (algorithm A1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.reduction import gram, length_of_sum
from mergeops.methods.steps.weighting import weighted_sum
from mergeops.schema import check_range

TINY_NORM = 1e-30
"""A tensor shorter than this has no direction; it still counts in the mean length."""
OPPOSITE_SINE = 1e-3
"""Nearly opposite to the mean there is no one shortest arc, so such a source does not pull."""


@dataclass(frozen=True)
class Karcher:
    """Parameters of ``karcher``."""

    max_iter: int = 10
    """Most steps along the sphere."""
    tol: float = 1e-5
    """A step shorter than this (radians) is the last."""

    def __post_init__(self) -> None:
        check_range("method.max_iter", self.max_iter, 1, None)
        check_range("method.tol", self.tol, 0.0, None)


def factors(scan: Scan, p: Karcher, at: MethodView) -> list[float]:
    """The factor of each source in the result.

    The mean and all steps lie in the sources' span, so they are combinations of the sources, and
    the dot products of one pass say all about them.
    """
    products = gram(scan)
    n = len(products)
    lengths = [math.sqrt(products[i][i]) for i in range(n)]
    # Dot products of the unit vectors of the sources that have a direction.
    used = [i for i in range(n) if lengths[i] > TINY_NORM]
    cosines = [[products[i][j] / lengths[i] / lengths[j] for j in used] for i in used]
    # First guess: the direction of the sum of the unit vectors, by its factor on each.
    mean = _normalized([1.0] * len(used), cosines, p.tol * len(used))
    if mean is None:
        return [1.0 / n] * n
    for _ in range(p.max_iter):
        # Algorithm A1: the mean of the logarithms at the guess, a vector of the tangent space ...
        step = _step(mean, cosines, p.tol)
        length = length_of_sum(step, cosines)
        if length < p.tol or length == 0.0:
            break
        # ... and its exponential, the point that lies so far along the arc in this direction.
        along = math.sin(length) / length
        moved = [math.cos(length) * m + along * s for m, s in zip(mean, step, strict=True)]
        mean = _normalized(moved, cosines, 0.0) or mean
    # The mean direction at the sources' mean length, by the factor on each source itself.
    mean_length = math.fsum(lengths) / n
    of_sources = [0.0] * n
    for i, factor in zip(used, mean, strict=True):
        of_sources[i] = mean_length * factor / lengths[i]
    return of_sources


def _step(mean: Sequence[float], cosines: Sequence[Sequence[float]], tol: float) -> list[float]:
    """The mean of the arcs from ``mean`` to each unit vector, in the unit vectors' coordinates."""
    n = len(mean)
    step = [0.0] * n
    for i in range(n):
        # Length of the arc to unit vector i.
        dot = math.fsum(m * c for m, c in zip(mean, cosines[i], strict=True))
        dot = max(-1.0, min(1.0, dot))
        angle = math.acos(dot)
        sine = math.sin(angle)
        if angle < tol or sine == 0.0 or (dot < 0 and sine < OPPOSITE_SINE):
            continue
        # Logarithm of unit vector u at the mean m: angle / sin(angle) * (u - cos(angle) m).
        pull = angle / sine / n
        step[i] += pull
        for j in range(n):
            step[j] -= pull * dot * mean[j]
    return step


def _normalized(
    vector: Sequence[float], cosines: Sequence[Sequence[float]], least: float
) -> list[float] | None:
    """The vector at length 1, or None where it is not longer than ``least``."""
    length = length_of_sum(vector, cosines)
    return [v / length for v in vector] if length > least else None


def formula(p: Karcher, at: MethodView, n: int) -> Formula:
    """The factors as weights."""
    return Formula(at.statistics)


@method("karcher", statistics=factors, formula=formula)
def merge(base: Tensor | None, sources: Tensor, p: Karcher, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used; a base that shall count is listed as a source.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the factors.

    Returns:
        ``[m]``. The plain mean where the sources' directions cancel and so have no mean.
    """
    return weighted_sum(sources, at.statistics)
