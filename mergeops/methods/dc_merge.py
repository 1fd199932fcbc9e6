"""DC-Merge: balance each task's singular values, and merge in one basis of all tasks' directions.

Zhang et al. 2026, https://arxiv.org/abs/2603.06242 (directional consistency), algorithm 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.matrices import decompose, merge_matrices, nearest_orthonormal
from mergeops.schema import check_range


@dataclass(frozen=True)
class DcMerge:
    """Parameters of ``dc_merge``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""
    rank: int = 0
    """How many directions of each task stay, those of the largest singular values; 0 takes an equal
    share of those that the matrix has. The authors take the rank of the LoRAs."""
    smooth: bool = True
    """Balance the singular values of each task and keep their sum; the authors do for LoRAs, and do
    not for full fine-tunes."""
    rho: float = 1.0
    """How many times its smallest balanced singular value a task's largest may be, with equal steps
    between them; 1 gives all of them their mean. The authors take 1 or 5."""
    vote: bool = True
    """Merge entries in the common basis as TIES does, by their mean over the tasks of the elected
    sign; else add them up, and scale = 1 / number of sources makes that a mean."""
    density: float = 0.001
    """Share of each task's entries in the common basis that stay, the largest by magnitude, and at
    least one; 1 keeps all."""
    mask: bool = True
    """Leave out entries that connect directions of different tasks."""

    def __post_init__(self) -> None:
        check_range("method.rank", self.rank, 0, None)
        check_range("method.rho", self.rho, 1.0, None)
        check_range("method.density", self.density, 0.0, 1.0)


@method(
    "dc_merge", source_parameters=("weight",), needs_base=True, min_sources=2, takes_matrices=True
)
def merge(base: Tensor, sources: Tensor, p: DcMerge, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, at least two; of equal ones the result is not that fine-tune.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """
    combine = functools.partial(_in_common_basis, p=p)
    return merge_matrices(base, sources, at.per_source["weight"], at, combine, scale=p.scale)


def _in_common_basis(matrices: Tensor, noise: Tensor, *, p: DcMerge) -> Tensor:
    n, rows, columns = matrices.shape
    kept = p.rank or max(min(rows, columns) // n, 1)
    tasks = [
        decompose(matrix, least).largest(kept)
        for matrix, least in zip(matrices, noise.tolist(), strict=True)
    ]
    # U* and V*^T: the orthonormal bases nearest to the directions of all tasks.
    left = nearest_orthonormal(torch.cat([task.left for task in tasks], dim=1))
    right = nearest_orthonormal(torch.cat([task.right for task in tasks]))
    aligned = []
    for task in tasks:
        values = _balanced(task.values, p.rho) if p.smooth else task.values
        # M_k = U*^T U_k diag(sigma) V_k^T V*.
        aligned.append((left.T @ task.left) * values @ (task.right @ right.T))
    merged = _aggregated(torch.stack(aligned), p)
    if p.mask:
        task_of = torch.cat([torch.full_like(task.values, i) for i, task in enumerate(tasks)])
        merged *= task_of[:, None] == task_of
    return left @ merged @ right


def _balanced(values: Tensor, rho: float) -> Tensor:
    """Singular values ``[k]`` of the same sum that fall in equal steps, the first at most ``rho``
    times the last."""
    if not len(values):
        return values
    ratio = min(rho, float(values[0] / values[-1]))
    steps = torch.linspace(ratio, 1.0, len(values), dtype=values.dtype, device=values.device)
    return values.sum() * steps / steps.sum()


def _aggregated(aligned: Tensor, p: DcMerge) -> Tensor:
    """One ``[k, k]`` of the tasks' ``[n, k, k]``; overwrites them."""
    size = aligned[0].numel()
    if size and p.density < 1.0:
        for task in aligned:
            least = task.abs().flatten().topk(max(int(p.density * size), 1)).values[-1]
            task[task.abs() < least] = 0.0
    total = aligned.sum(dim=0)
    if not p.vote:
        return total
    # The sign of the sum is elected, and the entries that have it averaged; none has that of zero.
    agree = aligned.sign() == total.sign()
    return (aligned * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
