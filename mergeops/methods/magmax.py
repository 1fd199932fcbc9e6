"""MagMax: each entry moves as far as the task that changes it most.

Marczak et al. 2024, https://arxiv.org/abs/2407.06322, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.weighting import multiply


@dataclass(frozen=True)
class MagMax:
    """Parameters of ``magmax``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""


@method("magmax", source_parameters=("weight",), needs_base=True)
def merge(base: Tensor, sources: Tensor, p: MagMax, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the weights.

    Returns:
        ``[m]``. Of changes of one size and opposite signs, the positive one is taken.
    """
    deltas = multiply(sources - base, at.per_source["weight"])
    highest, lowest = deltas.amax(dim=0), deltas.amin(dim=0)
    change = torch.where(highest >= -lowest, highest, lowest)
    return base + change * p.scale
