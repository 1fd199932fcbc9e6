"""Consensus: add up the task vectors where at least two tasks care for the entry.

Wang et al. 2024, https://arxiv.org/abs/2405.07813, sections 4 and 5 (TALL masks).
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.weighting import multiply, weighted_sum
from mergeops.schema import check_range

TASKS = 2
"""How many tasks must care for an entry that stays."""


@dataclass(frozen=True)
class Consensus:
    """Parameters of ``consensus``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 0.4
    """Factor on the sum of the task vectors."""
    threshold: float = 0.4
    """A task cares for an entry that it changes by more than this share of what all the others
    together do; the authors try 0.2 to 0.6."""

    def __post_init__(self) -> None:
        check_range("method.threshold", self.threshold, 0.0, None)


@method("consensus", source_parameters=("weight",), needs_base=True, min_sources=2)
def merge(base: Tensor, sources: Tensor, p: Consensus, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, at least two.
        p: parameters.
        at: gives the weights.

    Returns:
        ``[m]``. Entries that one task alone cares for, or none, stay as the base has them.
    """
    # float64, so that the sum of the other tasks does not depend on the order.
    deltas = multiply(sources.double() - base.double(), at.per_source["weight"])
    total = weighted_sum(deltas, [1.0] * len(deltas))
    votes = torch.zeros_like(total)
    for delta in deltas:
        # m_k = |Delta_k| > lambda |Delta - Delta_k|.
        votes += delta.abs() > p.threshold * (total - delta).abs()
    change = total.masked_fill_(votes < TASKS, 0.0).mul_(p.scale)
    return (base.double() + change).to(base.dtype)
