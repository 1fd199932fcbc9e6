"""Task arithmetic: add the weighted task vectors to the base.

Ilharco et al. 2023, https://arxiv.org/abs/2212.04089, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.weighting import check_normalize, factors, weighted_sum


@dataclass(frozen=True)
class TaskArithmetic:
    """Parameters of ``task_arithmetic``."""

    weight: float = 0.4
    """Weight of a source that sets none; a negative weight unlearns. 0.4 is what the TIES paper
    takes where no validation data is at hand."""
    normalize: bool = False
    """Divide by the sum of the weights."""
    scale: float = 1.0
    """Factor on the sum of the weighted task vectors."""


def formula(p: TaskArithmetic, at: MethodView, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(factors(at.per_source["weight"], p.scale, normalize=p.normalize))


@method(
    "task_arithmetic",
    source_parameters=("weight",),
    needs_base=True,
    check=check_normalize("task_arithmetic"),
    formula=formula,
)
def merge(base: Tensor, sources: Tensor, p: TaskArithmetic, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the weights.

    Returns:
        ``[m]``, ``base + scale * sum(weight * (source - base))``.
    """
    weights = factors(at.per_source["weight"], p.scale, normalize=p.normalize)
    return base + weighted_sum(sources - base, weights)
