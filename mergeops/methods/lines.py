"""LiNeS: task arithmetic that changes deep layers more than shallow ones.

Wang et al. 2024, https://arxiv.org/abs/2410.17146, sections 3 and 5 (layer-increasing scaling).
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.weighting import factors, weighted_sum


@dataclass(frozen=True)
class Lines:
    """Parameters of ``lines``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    alpha: float = 1.0
    """Factor on the mean of the task vectors in the first layer and outside of the layers; the
    authors take 1 for several tasks (their alpha is the factor on the sum)."""
    beta: float = 0.5
    """How much the factor on the sum of the task vectors grows from the first to the last layer;
    the authors tune it from 0.05 to 1, and take 1 - alpha for one task."""


def formula(p: Lines, at: MethodView, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(_factors(p, at, n))


@method("lines", source_parameters=("weight",), needs_base=True, formula=formula)
def merge(base: Tensor, sources: Tensor, p: Lines, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the weights and the depth of the layer.

    Returns:
        ``[m]``, ``base + (alpha / n + beta * depth) * sum(weight * (source - base))``.
    """
    return base + weighted_sum(sources - base, _factors(p, at, len(sources)))


def _factors(p: Lines, at: MethodView, n: int) -> list[float]:
    # lambda = alpha + beta (l - 1) / (L - 1) in layer l of L, and alpha outside of the layers.
    scale = p.alpha / n + p.beta * (at.depth or 0.0)
    return factors(at.per_source["weight"], scale, normalize=False)
