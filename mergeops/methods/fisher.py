"""Fisher merging: the mean of each weight, by how much it matters for each source's predictions.

Matena and Raffel 2022, https://arxiv.org/abs/2111.09832, section 3. It needs no base, but the
diagonal of each source's Fisher information, measured with ``prompts``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.weighting import check_normalize, multiply, weighted_sum
from mergeops.schema import check_range


@dataclass(frozen=True)
class Fisher:
    """Parameters of ``fisher``."""

    weight: float = 1.0
    """Factor on the information of a source that sets none."""
    floor: float = 1e-6
    """What each weight's information counts at least: weights that matter to nobody get the
    mean."""

    def __post_init__(self) -> None:
        check_range("method.floor", self.floor, 1e-30, None)
        check_range("method.weight", self.weight, 0.0, None)


@method(
    "fisher",
    activations="fisher",
    source_parameters=("weight",),
    check=check_normalize("fisher", None, takes_zeros=False),
)
def merge(base: Tensor | None, sources: Tensor, p: Fisher, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[n, m]``, recipe order; of equal ones the result is that model.
        p: parameters.
        at: gives weights, offset and the measured information.

    Returns:
        ``[m]``, ``sum_k weight_k F_k W_k / sum_k weight_k F_k``. Tensors of which nothing was
        measured: the mean.
    """
    exact = sources.double()
    n = len(exact)
    # Differences from the first source make the mean of equal ones exact.
    differences = exact - exact[0]
    information = torch.ones_like(exact)
    if at.activations is not None:
        part = slice(at.offset, at.offset + exact.shape[1])
        information = torch.stack([layer.values.flatten()[part] for layer in at.activations])
        information = information.to(exact.device).clamp(min=p.floor)
    weighted = multiply(information, at.per_source["weight"])
    total = weighted_sum(weighted, [1.0] * n)
    change = weighted_sum(weighted * differences, [1.0] * n) / total.where(total > 0, 1.0)
    return (exact[0] + change).to(sources.dtype)
