"""Isotropic merging: every direction of the merged change gets the same length.

Marczak et al. 2025, https://arxiv.org/abs/2502.04959, sections 4.1 (Iso-C) and 4.2 (Iso-CTS).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.matrices import decompose, merge_matrices, nearest_orthonormal
from mergeops.schema import check_range


@dataclass(frozen=True)
class IsoC:
    """Parameters of ``iso_c``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""


@dataclass(frozen=True)
class IsoCts(IsoC):
    """Parameters of ``iso_cts``."""

    weight: float = 1.0
    """Factor on the task vector of a source that sets none."""
    scale: float = 1.0
    """Factor on the merged change."""
    common_share: float = 0.8
    """Share of the directions that come from the sum of all tasks; the others are each task's."""

    def __post_init__(self) -> None:
        check_range("method.common_share", self.common_share, 0.0, 1.0)


@method(
    "iso_c",
    version=2,
    source_parameters=("weight",),
    needs_base=True,
    min_sources=2,
    takes_matrices=True,
)
def merge_common(base: Tensor, sources: Tensor, p: IsoC, at: MethodView) -> Tensor:
    """Iso-C: add up the task vectors, and give all directions of the sum their mean length.

    Jointly proposed with Iso-CTS, https://arxiv.org/abs/2502.04959, section 4.1.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, at least two; of equal ones the result is not that fine-tune.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """
    return merge_matrices(base, sources, at.per_source["weight"], at, _flatten_sum, scale=p.scale)


@method(
    "iso_cts",
    version=2,
    source_parameters=("weight",),
    needs_base=True,
    min_sources=2,
    takes_matrices=True,
)
def merge_common_and_own(base: Tensor, sources: Tensor, p: IsoCts, at: MethodView) -> Tensor:
    """Iso-CTS: the main directions of the sum and each task's own ones, all of one length.

    Jointly proposed with Iso-C, https://arxiv.org/abs/2502.04959, section 4.2.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, at least two.
        p: parameters.
        at: gives shape and weights.

    Returns:
        ``[m]``. Tensors that are no matrices, embeddings and heads: the mean of the task vectors.
    """
    combine = functools.partial(_flatten_common_and_own, common_share=p.common_share)
    return merge_matrices(base, sources, at.per_source["weight"], at, combine, scale=p.scale)


def _flatten_sum(matrices: Tensor, noise: Tensor) -> Tensor:
    left, values, right = decompose(matrices.sum(dim=0), float(noise.norm()))
    # The mean is over all directions that the shape has, the null space included.
    mean = values.sum() / min(matrices.shape[1:])
    return left @ right * mean


def _flatten_common_and_own(matrices: Tensor, noise: Tensor, *, common_share: float) -> Tensor:
    n, rows, columns = matrices.shape
    size = min(rows, columns)
    # The tasks share what is not common in equal parts, rounded as in the authors' code.
    own = round((size - int(size * common_share)) / n)
    common = decompose(matrices.sum(dim=0), float(noise.norm())).largest(size - own * n)
    # What each task has outside of the common directions: (I - U U^T) Delta_k.
    outside = [matrix - common.left @ (common.left.T @ matrix) for matrix in matrices]
    each = zip(outside, noise.tolist(), strict=True)
    parts = [*(decompose(matrix, least).largest(own) for matrix, least in each), common]
    left = nearest_orthonormal(torch.cat([part.left for part in parts], dim=1))
    right = nearest_orthonormal(torch.cat([part.right for part in parts]))
    mean = torch.cat([part.values for part in parts]).sum() / size
    return left @ right * mean
