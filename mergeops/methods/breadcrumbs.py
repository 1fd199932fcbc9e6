"""Breadcrumbs: drop each task vector's outliers and its small changes, then add up or vote.

Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.consensus import elect_and_average
from mergeops.methods.steps.counting import Magnitudes
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.selection import KEEP_NONE, Cut, find_largest
from mergeops.methods.steps.sparsify import delta_keys, keep_largest, norm_factors
from mergeops.methods.steps.weighting import check_normalize, factors, multiply, weighted_sum
from mergeops.schema import check_range


@dataclass(frozen=True)
class Breadcrumbs:
    """Parameters of ``breadcrumbs``."""

    weight: float = 0.4
    """Weight of a source that sets none."""
    density: float = 0.9
    """Share of each task vector's entries that stay."""
    gamma: float = 0.01
    """Share of each task vector's entries, the largest, that are dropped as outliers."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    rescale: bool = False
    """Scale what stays so that each task vector keeps its L1 norm over the tensor."""
    scale: float = 1.0
    """Factor on the sum of the weighted task vectors."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)
        check_range("method.gamma", self.gamma, 0.0, 1.0)


@dataclass(frozen=True)
class BreadcrumbsTies(Breadcrumbs):
    """Parameters of ``breadcrumbs_ties``: those of ``breadcrumbs``, of which three mean other
    things."""

    weight: float = 1.0
    """Weight of a source that sets none: in the vote and in the mean."""
    normalize: bool = False
    """Average over the sources that agree with the elected sign; else add them up."""
    scale: float = 1.0
    """Factor on the merged task vector."""


class Window(NamedTuple):
    """What stays: the entries above ``outer`` that are not above ``inner``."""

    outer: Cut
    inner: Cut


class BreadcrumbsTrim(NamedTuple):
    """How the task vectors of one tensor are trimmed."""

    windows: tuple[Window, ...]
    factors: tuple[float, ...]


def statistics(scan: Scan, p: Breadcrumbs, at: MethodView) -> BreadcrumbsTrim:
    """Where each source's task vector is trimmed, and its factor: it keeps the L1 norm, or is 1."""
    windows = find_windows(scan, at.per_source["density"], at.per_source["gamma"], at.numel)
    if not p.rescale:
        return BreadcrumbsTrim(windows, (1.0,) * len(windows))

    def keep(deltas: Tensor, offset: int) -> Tensor:
        return keep_between(deltas, windows, offset)

    trimmed = Formula([1.0] * len(windows), windows=windows)
    return BreadcrumbsTrim(windows, norm_factors(scan, keep, trimmed))


def linear_formula(p: Breadcrumbs, at: MethodView, n: int) -> Formula:
    """What ``breadcrumbs`` does."""
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return Formula(weights, factors=at.statistics.factors, windows=at.statistics.windows)


def ties_formula(p: BreadcrumbsTies, at: MethodView, n: int) -> Formula:
    """What ``breadcrumbs_ties`` does."""
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=at.statistics.factors,
        windows=at.statistics.windows,
        vote=True,
        normalize=p.normalize,
    )


@method(
    "breadcrumbs",
    source_parameters=("weight", "density", "gamma"),
    needs_base=True,
    statistics=statistics,
    formula=linear_formula,
    check=check_normalize("breadcrumbs"),
)
def breadcrumbs(base: Tensor, sources: Tensor, p: Breadcrumbs, at: MethodView) -> Tensor:
    """Breadcrumbs: drop each task vector's outliers and its small changes, add up the rest.

    Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795, section 3, with task arithmetic.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives weights, offset and the windows.

    Returns:
        ``[m]``. Exactly ``int(density * numel)`` entries of each task vector take part; entries
        that every source trimmed stay at ``base``.
    """
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(_trimmed(base, sources, at), weights)


@method(
    "breadcrumbs_ties",
    source_parameters=("weight", "density", "gamma"),
    needs_base=True,
    statistics=statistics,
    formula=ties_formula,
)
def breadcrumbs_ties(base: Tensor, sources: Tensor, p: BreadcrumbsTies, at: MethodView) -> Tensor:
    """Breadcrumbs with TIES: drop outliers and small changes, elect a sign, average what agrees.

    Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795, section 3, with the sign vote of
    Yadav et al. 2023, https://arxiv.org/abs/2306.01708.

    Takes and returns what ``breadcrumbs`` does.
    """
    trimmed = _trimmed(base, sources, at)
    change = elect_and_average(trimmed, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale


def find_windows(
    scan: Scan, densities: Sequence[float], gammas: Sequence[float], numel: int
) -> tuple[Window, ...]:
    """The window of each task vector that keeps exactly ``int(density * numel)`` entries.

    Above it lie the ``int(gamma * numel)`` largest entries, or as many as the density leaves.

    Args:
        scan: passes over the tensor.
        densities: n shares, 0 to 1.
        gammas: n shares, 0 to 1.
        numel: elements of the tensor.
    """
    targets = []
    for i, (density, gamma) in enumerate(zip(densities, gammas, strict=True)):
        kept = int(density * numel)
        outliers = min(int(gamma * numel), numel - kept)
        targets += [(i, kept + outliers), (i, outliers)]
    cuts = find_largest(scan, delta_keys, targets, numel, counted=Magnitudes())
    return tuple(map(Window, cuts[::2], cuts[1::2]))


def keep_between(deltas: Tensor, windows: Sequence[Window], offset: int) -> Tensor:
    """Set all entries outside their source's window to zero, in place.

    Args:
        deltas: ``[n, m]``, a chunk of the task vectors.
        windows: from ``find_windows``.
        offset: index of the chunk's first entry.
    """
    for delta, (outer, inner) in zip(deltas, windows, strict=True):
        outliers = None
        if inner != KEEP_NONE:
            outliers = keep_largest(delta.clone()[None], [inner], offset)[0]
        keep_largest(delta[None], [outer], offset)
        if outliers is not None:
            # Outliers are what stays or zero, so this is exact.
            torch.sub(delta, outliers, out=delta)
    return deltas


def _trimmed(base: Tensor, sources: Tensor, at: MethodView) -> Tensor:
    """The task vectors ``[n, m]`` of a chunk, trimmed and rescaled."""
    trim: BreadcrumbsTrim = at.statistics
    return multiply(keep_between(sources - base, trim.windows, at.offset), trim.factors)
