"""Model soup: the weighted mean of the weights.

Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 2 (uniform soup).
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.weighting import check_normalize, factors, weighted_sum


@dataclass(frozen=True)
class Linear:
    """Parameters of ``linear``."""

    weight: float = 1.0
    """Weight of a source that sets none."""
    normalize: bool = True
    """Divide by the sum of the weights, so that the result is a mean."""


def formula(p: Linear, at: MethodView, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(factors(at.per_source["weight"], 1.0, normalize=p.normalize))


@method(
    "linear",
    source_parameters=("weight",),
    check=check_normalize("linear", takes_zeros=False),
    formula=formula,
)
def merge(base: Tensor | None, sources: Tensor, p: Linear, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the weights.

    Returns:
        ``[m]``, the weighted sum, divided by the sum of the weights with ``normalize``.
    """
    return weighted_sum(sources, factors(at.per_source["weight"], 1.0, normalize=p.normalize))
