"""DARE: drop most of each task vector at random, rescale the rest, add it up.

Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3, with task arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mergeops.methods import Place, method
from mergeops.methods.sparsify import drop_random
from mergeops.methods.weighting import weighted_sum
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
    scale: float = 1.0
    """Factor on the sum of the weighted task vectors."""

    def __post_init__(self) -> None:
        check_range("method.density", self.density, 0.0, 1.0)


@method("dare_linear", source_parameters=("weight", "density"), needs_base=True, is_random=True)
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
    sparse = drop_random(
        sources - base, at.per_source["density"], at.keys, at.offset, rescale=p.rescale
    )
    weights = [p.scale * weight for weight in at.per_source["weight"]]
    return base + weighted_sum(sparse, weights)
