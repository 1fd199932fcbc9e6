"""DELLA, linear: drop small changes more likely than large ones, rescale and add up the rest.

Deep et al. 2024, https://arxiv.org/abs/2406.11617, section 3 (MagPrune), with task arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.fused import Drops, Formula, Matched
from mergeops.methods.ranks import drop_by_rank
from mergeops.methods.sparsify import always, check_match_norm, multiply, norm_factors
from mergeops.methods.weighting import check_mean, factors, weighted_sum
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DellaLinear:
    """Parameters of ``della_linear``."""

    weight: float = 0.4
    """Weight of a source that sets none."""
    density: float = 0.5
    """Mean probability that an entry of a task vector stays."""
    epsilon: float = 0.15
    """How far the probability goes up for the largest entry of a row, and down for the smallest;
    it gives way where this would leave 0 to 1."""
    rescale: bool = True
    """Divide what stays by its probability, as in the paper."""
    match_norm: bool = False
    """Rescale so that each task vector keeps its L1 norm over the tensor, instead."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    scale: float = 1.0
    """Factor on the sum of the weighted task vectors."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)
        check_range("method.epsilon", self.epsilon, 0.0, 1.0)
        check_match_norm(self.rescale, self.match_norm)


def check(per_source: Mapping[str, Sequence[float]], p: DellaLinear) -> None:
    """Refuse a mean whose weights cancel."""
    if p.normalize:
        check_mean("della_linear", per_source["weight"], "normalize")


def statistics(scan: Scan, p: DellaLinear, at: Place) -> Matched | None:
    """Each task vector's factor, where norms are matched, and what is dropped."""
    if not p.match_norm:
        return None

    def drop(deltas: Tensor, offset: int) -> Tensor:
        return _drop(deltas, p, at, offset)

    drops = Drops.of(p, at)
    sparse = Formula([1.0] * len(at.keys), drops=drops)
    return Matched(norm_factors(scan, drop, sparse, row_length=at.row_length), drops)


def formula(p: DellaLinear, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    matched: Matched | None = at.statistics
    return Formula(
        factors(at.per_source["weight"], p.scale, normalize=p.normalize),
        factors=matched.factors if matched else None,
        drops=matched.drops if matched else Drops.of(p, at),
    )


@method(
    "della_linear",
    source_parameters=("weight", "density", "epsilon"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=formula,
    check=check,
    whole_rows=always,
)
def merge(base: Tensor, sources: Tensor, p: DellaLinear, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, whole rows, recipe order.
        p: parameters.
        at: gives weights, densities, widths, random keys, offset and the length of a row.

    Returns:
        ``[m]``; its expectation over seeds is task arithmetic's result with ``rescale``.
    """
    sparse = _drop(sources - base, p, at, at.offset)
    if at.statistics is not None:
        sparse = multiply(sparse, at.statistics.factors)
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(sparse, weights)


def _drop(deltas: Tensor, p: DellaLinear, at: Place, offset: int) -> Tensor:
    return drop_by_rank(
        deltas,
        at.per_source["density"],
        at.per_source["epsilon"],
        at.keys,
        offset,
        at.row_length,
        rescale=p.rescale and not p.match_norm,
    )
