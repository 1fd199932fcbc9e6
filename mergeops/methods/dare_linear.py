"""DARE: drop most of each task vector at random, rescale the rest, add it up.

Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3, with task arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.fused import Drops, Formula
from mergeops.methods.sparsify import check_match_norm, drop_random, multiply, norm_factors
from mergeops.methods.weighting import check_mean, factors, weighted_sum
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DareLinear:
    """Parameters of ``dare_linear``."""

    weight: float = 0.4
    """Weight of a source that sets none."""
    density: float = 0.5
    """Probability that an entry of a task vector stays (one minus the paper's drop rate)."""
    rescale: bool = True
    """Divide what stays by the density, as in the paper."""
    match_norm: bool = False
    """Rescale so that each task vector keeps its L1 norm over the tensor, instead."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    scale: float = 1.0
    """Factor on the sum of the weighted task vectors."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)
        check_match_norm(self.rescale, self.match_norm)


def check(per_source: Mapping[str, Sequence[float]], p: DareLinear) -> None:
    """Refuse a mean whose weights cancel."""
    if p.normalize:
        check_mean("dare_linear", per_source["weight"], "normalize")


def statistics(scan: Scan, p: DareLinear, at: Place) -> tuple[float, ...] | None:
    """Each task vector's factor, where norms are matched."""
    if not p.match_norm:
        return None

    def drop(deltas: Tensor, offset: int) -> Tensor:
        return _drop(deltas, p, at, offset)

    sparse = Formula([1.0] * len(at.keys), drops=Drops.of(p, at))
    return norm_factors(scan, drop, sparse)


def formula(p: DareLinear, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(
        factors(at.per_source["weight"], p.scale, normalize=p.normalize),
        factors=at.statistics,
        drops=Drops.of(p, at),
    )


@method(
    "dare_linear",
    source_parameters=("weight", "density"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=formula,
    check=check,
)
def merge(base: Tensor, sources: Tensor, p: DareLinear, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives weights, densities, random keys and offset.

    Returns:
        ``[m]``; its expectation over seeds is task arithmetic's result with ``rescale``.
    """
    sparse = _drop(sources - base, p, at, at.offset)
    if at.statistics is not None:
        sparse = multiply(sparse, at.statistics)
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(sparse, weights)


def _drop(deltas: Tensor, p: DareLinear, at: Place, offset: int) -> Tensor:
    rescale = p.rescale and not p.match_norm
    return drop_random(deltas, at.per_source["density"], at.keys, offset, rescale=rescale)
