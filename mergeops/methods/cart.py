"""CART: the mean of the sources, and around it the main directions of each one's difference.

Choi et al. 2024, https://arxiv.org/abs/2412.12153. It needs no base.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.matrices import decompose, merge_matrices
from mergeops.methods.steps.weighting import weighted_sum
from mergeops.schema import check_range


@dataclass(frozen=True)
class Cart:
    """Parameters of ``cart``."""

    scale: float = 1.0
    """Factor on the sum of the differences from the mean."""
    rank_share: float = 0.08
    """Share of each difference's directions that stay, those of the largest singular values; all of
    them add up to nothing."""

    def __post_init__(self) -> None:
        check_range("method.rank_share", self.rank_share, 0.0, 1.0)


@method("cart", takes_matrices=True)
def merge(base: Tensor | None, sources: Tensor, p: Cart, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[n, m]``, recipe order; of equal ones the result is that model.
        p: parameters.
        at: gives the shape.

    Returns:
        ``[m]``, ``mean + scale * sum of the truncated differences``. Tensors that are no matrices,
        embeddings and heads: the mean.
    """
    n = len(sources)
    exact = sources.double()
    # Differences from the first source make the mean of equal ones exact.
    mean = exact[0] + weighted_sum(exact - exact[0], [1.0 / n] * n)
    kept = int(p.rank_share * min(at.shape[-2:])) if at.is_matrix else 0
    if kept == 0:
        return mean.to(sources.dtype)

    def combine(matrices: Tensor, noise: Tensor) -> Tensor:
        total = torch.zeros_like(matrices[0])
        for matrix in matrices:
            left, values, right = decompose(matrix).largest(kept)
            total += left * values @ right
        return total

    return merge_matrices(mean, exact, [1.0] * n, at, combine, scale=p.scale).to(sources.dtype)
