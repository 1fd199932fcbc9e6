"""Breadcrumbs: drop each task vector's outliers and its small changes, add up the rest.

Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795, section 3, with task arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.fused import Formula
from mergeops.methods.trimming import Trim, find_trim, trim
from mergeops.methods.weighting import check_mean, factors, weighted_sum
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


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


def check(per_source: Mapping[str, Sequence[float]], p: Breadcrumbs) -> None:
    """Refuse a mean whose weights cancel."""
    if p.normalize:
        check_mean("breadcrumbs", per_source["weight"], "normalize")


def statistics(scan: Scan, p: Breadcrumbs, at: Place) -> Trim:
    """Where each source's task vector is trimmed, and its factor."""
    return find_trim(scan, at, rescale=p.rescale)


def formula(p: Breadcrumbs, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(
        factors(at.per_source["weight"], p.scale, normalize=p.normalize),
        factors=at.statistics.factors,
        windows=at.statistics.windows,
    )


@method(
    "breadcrumbs",
    source_parameters=("weight", "density", "gamma"),
    needs_base=True,
    statistics=statistics,
    formula=formula,
    check=check,
)
def merge(base: Tensor, sources: Tensor, p: Breadcrumbs, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives weights, offset and the windows.

    Returns:
        ``[m]``. Exactly ``int(density * numel)`` entries of each task vector take part; entries
        that every source trimmed stay at ``base``.
    """
    trimmed = trim(sources - base, at.statistics, at.offset)
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(trimmed, weights)
