"""DELLA: drop small changes more likely than large ones, rescale the rest, then vote or add up.

Deep et al. 2024, https://arxiv.org/abs/2406.11617, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.consensus import elect_and_average
from mergeops.methods.steps.fused import Drops, Formula, Matched
from mergeops.methods.steps.ranks import drop_by_rank
from mergeops.methods.steps.sparsify import always, check_match_norm, norm_factors
from mergeops.methods.steps.weighting import check_normalize, factors, multiply, weighted_sum
from mergeops.schema import check_range


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


@dataclass(frozen=True)
class DellaLinear(Della):
    """Parameters of ``della_linear``: those of ``della``, of which three mean other things."""

    weight: float = 0.4
    """Weight of a source that sets none."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    scale: float = 1.0
    """Factor on the sum of the weighted task vectors."""


def statistics(scan: Scan, p: Della, at: MethodView) -> Matched | None:
    """Each task vector's factor, where norms are matched, and what is dropped."""
    if not p.match_norm:
        return None

    def drop(deltas: Tensor, offset: int) -> Tensor:
        return _drop(deltas, p, at, offset)

    drops = Drops.of(p, at)
    sparse = Formula([1.0] * len(at.keys), drops=drops)
    return Matched(norm_factors(scan, drop, sparse, row_length=at.row_length), drops)


def ties_formula(p: Della, at: MethodView, n: int) -> Formula:
    """What ``della`` does."""
    matched = _matched(p, at)
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=matched.factors,
        drops=matched.drops,
        vote=True,
        normalize=p.normalize,
    )


def linear_formula(p: DellaLinear, at: MethodView, n: int) -> Formula:
    """What ``della_linear`` does."""
    matched = _matched(p, at)
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return Formula(weights, factors=matched.factors, drops=matched.drops)


@method(
    "della",
    source_parameters=("weight", "density", "epsilon"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=ties_formula,
    whole_rows=always,
)
def della(base: Tensor, sources: Tensor, p: Della, at: MethodView) -> Tensor:
    """DELLA: drop small changes more likely than large ones, elect a sign, average what agrees.

    Deep et al. 2024, https://arxiv.org/abs/2406.11617, section 3 (MagPrune, Elect, Fuse).

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, whole rows, recipe order.
        p: parameters.
        at: gives weights, densities, widths, random keys, offset and the length of a row.

    Returns:
        ``[m]``; entries that every source dropped stay at ``base``.
    """
    sparse = _sparse(base, sources, p, at)
    change = elect_and_average(sparse, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale


@method(
    "della_linear",
    source_parameters=("weight", "density", "epsilon"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=linear_formula,
    check=check_normalize("della_linear"),
    whole_rows=always,
)
def della_linear(base: Tensor, sources: Tensor, p: DellaLinear, at: MethodView) -> Tensor:
    """DELLA, linear: drop small changes more likely than large ones, rescale and add up the rest.

    Deep et al. 2024, https://arxiv.org/abs/2406.11617, section 3 (MagPrune), with task arithmetic.

    Takes and returns what ``della`` does; with ``rescale``, the expectation of the result over
    seeds is task arithmetic's result.
    """
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(_sparse(base, sources, p, at), weights)


def _matched(p: Della, at: MethodView) -> Matched:
    """What ``statistics`` found, or what it would have without matching norms."""
    matched: Matched | None = at.statistics
    return matched or Matched(None, Drops.of(p, at))


def _sparse(base: Tensor, sources: Tensor, p: Della, at: MethodView) -> Tensor:
    """The task vectors ``[n, m]`` of a chunk, dropped and rescaled."""
    sparse = _drop(sources - base, p, at, at.offset)
    return sparse if at.statistics is None else multiply(sparse, at.statistics.factors)


def _drop(deltas: Tensor, p: Della, at: MethodView, offset: int) -> Tensor:
    return drop_by_rank(
        deltas,
        at.per_source["density"],
        at.per_source["epsilon"],
        at.keys,
        offset,
        at.row_length,
        rescale=p.rescale and not p.match_norm,
    )
