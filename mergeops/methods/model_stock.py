"""Model Stock: from the angle between task vectors, how far to go from the base to their mean.

Jang et al. 2024, https://arxiv.org/abs/2403.19522, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.reduction import gram, pairs, row_sums
from mergeops.methods.steps.weighting import weighted_sum

LEAST_RATIO = -1.0
"""The formula has a pole where the task vectors cancel (cosine -1 / (n - 1)): no further back."""


@dataclass(frozen=True)
class ModelStock:
    """Parameters of ``model_stock``."""

    filter_wise: bool = False
    """One ratio for each row of the last dimension, not one for the tensor."""


def whole_rows(p: ModelStock) -> bool:
    """Ratios of rows need whole rows."""
    return p.filter_wise


def ratio(scan: Scan, p: ModelStock, at: MethodView) -> float | None:
    """The paper's interpolation ratio t of the whole tensor."""
    if p.filter_wise:
        return None
    products = gram(scan)
    n = len(products)
    # Cosine of the angle theta between two task vectors, as the mean over all pairs.
    norms = [math.sqrt(products[i][i]) for i in range(n)]
    cosines = []
    for i, j in pairs(n):
        if i != j:
            # A task vector that is zero has no direction: it is orthogonal to all.
            length = norms[i] * norms[j]
            cosines.append(products[i][j] / length if length > 0 else 0.0)
    cosine = max(-1.0, min(1.0, math.fsum(cosines) / len(cosines)))
    # t = n cos(theta) / (1 + (n - 1) cos(theta)).
    below = 1.0 + (n - 1) * cosine
    return max(n * cosine / below, LEAST_RATIO) if below > 0 else LEAST_RATIO


def formula(p: ModelStock, at: MethodView, n: int) -> Formula | None:
    """The mean of the task vectors, scaled by the ratio of the tensor."""
    return None if p.filter_wise else Formula([1.0 / n] * n, scale=float(at.statistics))


@method(
    "model_stock",
    needs_base=True,
    min_sources=2,
    statistics=ratio,
    whole_rows=whole_rows,
    formula=formula,
)
def merge(base: Tensor, sources: Tensor, p: ModelStock, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the pretrained model.
        sources: ``[n, m]``, at least two fine-tunes of it.
        p: parameters.
        at: gives the ratio t, or the length of a row.

    Returns:
        ``[m]``, ``t * mean(sources) + (1 - t) * base``.
    """
    deltas = sources - base
    n = len(deltas)
    change = weighted_sum(deltas, [1.0 / n] * n)
    if not p.filter_wise:
        return base + change * float(at.statistics)
    rows = deltas.view(n, -1, at.row_length)
    ratios = _row_ratios(rows).to(base.dtype)
    return base + (change.view(rows.shape[1:]) * ratios[:, None]).view(-1)


def _row_ratios(rows: Tensor) -> Tensor:
    """The ratio t of each row: ``[n, r, m]`` -> ``[r]`` float64."""
    n = len(rows)
    exact = rows.double()
    # Cosine of the angle theta between two task vectors, as the mean over all pairs.
    norms = [row_sums(row * row).sqrt_() for row in exact]
    cosines = []
    for i, j in pairs(n):
        if i != j:
            length = norms[i] * norms[j]
            cosine = row_sums(exact[i] * exact[j]) / length.where(length > 0, 1.0)
            cosines.append(cosine)
    total = sum(cosines, torch.zeros_like(cosines[0]))
    cosine = total.mul_(1.0 / len(cosines)).clamp_(-1.0, 1.0)
    # t = n cos(theta) / (1 + (n - 1) cos(theta)).
    below = 1.0 + cosine * (n - 1)
    ratios = cosine * n / below.where(below > 0, 1.0)
    return ratios.where(below > 0, LEAST_RATIO).clamp_(min=LEAST_RATIO)
