"""DARE: drop most of each task vector at random and rescale the rest, then add up or vote.

Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.consensus import elect_and_average
from mergeops.methods.steps.fused import Drops, Formula
from mergeops.methods.steps.sparsify import check_match_norm, drop_random, norm_factors
from mergeops.methods.steps.weighting import check_normalize, factors, multiply, weighted_sum
from mergeops.schema import check_range


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


@dataclass(frozen=True)
class DareTies(DareLinear):
    """Parameters of ``dare_ties``: those of ``dare_linear``, of which three mean other things."""

    weight: float = 1.0
    """Weight of a source that sets none: in the vote and in the mean."""
    normalize: bool = True
    """Average over the sources that agree with the elected sign; else add them up."""
    scale: float = 1.0
    """Factor on the merged task vector."""


def statistics(scan: Scan, p: DareLinear, at: MethodView) -> tuple[float, ...] | None:
    """Each task vector's factor, where norms are matched."""
    if not p.match_norm:
        return None

    def drop(deltas: Tensor, offset: int) -> Tensor:
        return _drop(deltas, p, at, offset)

    sparse = Formula([1.0] * len(at.keys), drops=Drops.of(p, at))
    return norm_factors(scan, drop, sparse)


def linear_formula(p: DareLinear, at: MethodView, n: int) -> Formula:
    """What ``dare_linear`` does."""
    return Formula(
        factors(at.per_source["weight"], p.scale, normalize=p.normalize),
        factors=at.statistics,
        drops=Drops.of(p, at),
    )


def ties_formula(p: DareTies, at: MethodView, n: int) -> Formula:
    """What ``dare_ties`` does."""
    return Formula(
        at.per_source["weight"],
        scale=p.scale,
        factors=at.statistics,
        drops=Drops.of(p, at),
        vote=True,
        normalize=p.normalize,
    )


@method(
    "dare_linear",
    source_parameters=("weight", "density"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=linear_formula,
    check=check_normalize("dare_linear"),
)
def dare_linear(base: Tensor, sources: Tensor, p: DareLinear, at: MethodView) -> Tensor:
    """DARE: drop most of each task vector at random, rescale the rest, add it up.

    Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3, with task arithmetic.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives weights, densities, random keys and offset.

    Returns:
        ``[m]``; its expectation over seeds is task arithmetic's result with ``rescale``.
    """
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(_sparse(base, sources, p, at), weights)


@method(
    "dare_ties",
    source_parameters=("weight", "density"),
    needs_base=True,
    is_random=True,
    statistics=statistics,
    formula=ties_formula,
)
def dare_ties(base: Tensor, sources: Tensor, p: DareTies, at: MethodView) -> Tensor:
    """DARE with TIES: drop entries at random, rescale, then elect a sign and average what agrees.

    Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3, with the sign vote of Yadav et al.
    2023, https://arxiv.org/abs/2306.01708.

    Takes and returns what ``dare_linear`` does; entries that every source dropped stay at ``base``.
    """
    sparse = _sparse(base, sources, p, at)
    change = elect_and_average(sparse, at.per_source["weight"], normalize=p.normalize)
    return base + change * p.scale


def _sparse(base: Tensor, sources: Tensor, p: DareLinear, at: MethodView) -> Tensor:
    """The task vectors ``[n, m]`` of a chunk, dropped and rescaled."""
    sparse = _drop(sources - base, p, at, at.offset)
    return sparse if at.statistics is None else multiply(sparse, at.statistics)


def _drop(deltas: Tensor, p: DareLinear, at: MethodView, offset: int) -> Tensor:
    rescale = p.rescale and not p.match_norm
    return drop_random(deltas, at.per_source["density"], at.keys, offset, rescale=rescale)
