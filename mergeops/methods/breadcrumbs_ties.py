"""Breadcrumbs with TIES: drop outliers and small changes, elect a sign, average what agrees.

Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795, section 3, with the sign vote of
Yadav et al. 2023, https://arxiv.org/abs/2306.01708.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.consensus import elect_and_average
from mergeops.methods.fused import Formula
from mergeops.methods.trimming import Trim, find_trim, trim
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BreadcrumbsTies:
    """Parameters of ``breadcrumbs_ties``."""

    weight: float = 1.0
    """Weight of a source that sets none: in the vote and in the mean."""
    density: float = 0.9
    """Share of each task vector's entries that stay."""
    gamma: float = 0.01
    """Share of each task vector's entries, the largest, that are dropped as outliers."""
    normalize: bool = False
    """Average over the sources that agree with the elected sign; else add them up."""
    rescale: bool = False
    """Scale what stays so that each task vector keeps its L1 norm over the tensor."""
    scale: float = 1.0
    """Factor on the merged task vector."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)
        check_range("method.gamma", self.gamma, 0.0, 1.0)


def statistics(scan: Scan, p: BreadcrumbsTies, at: Place) -> Trim:
    """Where each source's task vector is trimmed, and its factor."""
    return find_trim(scan, at, rescale=p.rescale)


def formula(p: BreadcrumbsTies, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=at.statistics.factors,
        windows=at.statistics.windows,
        vote=True,
        normalize=p.normalize,
    )


@method(
    "breadcrumbs_ties",
    source_parameters=("weight", "density", "gamma"),
    needs_base=True,
    statistics=statistics,
    formula=formula,
)
def merge(base: Tensor, sources: Tensor, p: BreadcrumbsTies, at: Place) -> Tensor:
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
    change = elect_and_average(trimmed, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale
