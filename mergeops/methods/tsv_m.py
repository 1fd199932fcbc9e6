"""TSV-M: keep each task's largest singular directions, make those of all tasks orthogonal.

Gargiulo et al. 2025, https://arxiv.org/abs/2412.00081, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.matrices import decompose, merge_matrices, nearest_orthonormal


@dataclass(frozen=True)
class TsvM:
    """Parameters of ``tsv_m``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""


@method("tsv_m", version=2, source_parameters=("weight",), needs_base=True, takes_matrices=True)
def merge(base: Tensor, sources: Tensor, p: TsvM, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``; the same fine-tune given twice counts as two tasks whose directions
            exclude each other, so the result is not that fine-tune.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """
    return merge_matrices(base, sources, at.per_source["weight"], at, combine, scale=p.scale)


def combine(matrices: Tensor, noise: Tensor) -> Tensor:
    """The task matrices ``[n, r, c]`` as one ``[r, c]``."""
    n, rows, columns = matrices.shape
    # Each task has an equal share of the directions that a matrix of this shape can have.
    share = max(min(rows, columns) // n, 1)
    tasks = [
        decompose(matrix, least).largest(share)
        for matrix, least in zip(matrices, noise.tolist(), strict=True)
    ]
    values = torch.cat([task.values for task in tasks])
    # Orthogonalized: no task's direction has a part in another's.
    left = nearest_orthonormal(torch.cat([task.left for task in tasks], dim=1))
    right = nearest_orthonormal(torch.cat([task.right for task in tasks]))
    # Delta = U diag(sigma) V^T.
    return left * values @ right
