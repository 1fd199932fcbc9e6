"""The task vectors of linear layers as the matrices that they are, decomposed in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView
from mergeops.methods.steps.weighting import multiply, weighted_sum

Combine = Callable[[Tensor, Tensor], Tensor]
"""``combine(matrices [n, r, c], noise [n]) -> [r, c]``, float64: n task vectors of a matrix as one;
``noise`` is the singular value up to which rounding alone decides a direction of each."""


def merge_matrices(
    base: Tensor,
    sources: Tensor,
    weights: Sequence[float],
    at: MethodView,
    combine: Combine,
    *,
    scale: float,
) -> Tensor:
    """Add to the base what ``combine`` makes of the weighted task vectors of each matrix.

    Tensors that are no matrices (norms, biases, kernels of convolutions), embeddings and heads get
    the mean of the weighted task vectors, as in the reference codes of these methods.

    Args:
        base: ``[m]``, whole matrices where the tensor has some.
        sources: ``[n, m]``.
        weights: n numbers.
        at: gives the shape.
        combine: merges one matrix.
        scale: factor on the change.

    Returns:
        ``[m]``, in the dtype of ``base``.
    """
    deltas = multiply(sources.double() - base.double(), weights)
    n = len(deltas)
    if at.is_matrix:
        # [n, m] -> [experts, n, r, c].
        split = (n, -1, *at.shape[-2:])
        matrices = deltas.view(split).transpose(0, 1)
        noise = _rounding(sources.view(split)).T * deltas.new_tensor(weights).abs()
        pairs = zip(matrices, noise, strict=True)
        change = torch.stack([combine(*of_expert) for of_expert in pairs]).view(-1)
        change *= scale
    else:
        change = weighted_sum(deltas, [scale / n] * n)
    return (base.double() + change).to(base.dtype)


class SingularFactors(NamedTuple):
    """A matrix as ``left @ diag(values) @ right``; directions whose value is zero are left out."""

    left: Tensor
    """``[r, k]``, orthonormal columns."""
    values: Tensor
    """``[k]``, the largest first."""
    right: Tensor
    """``[k, c]``, orthonormal rows."""

    def largest(self, k: int) -> SingularFactors:
        """The first k of them, or all."""
        return SingularFactors(self.left[:, :k], self.values[:k], self.right[:k])


def decompose(matrix: Tensor, noise: float = 0.0) -> SingularFactors:
    """The singular value decomposition of ``[r, c]`` float64, without the null space.

    What spans the null space is any basis of it: rounding chooses one, so no method may use it.

    Args:
        matrix: what is decomposed.
        noise: singular values up to this one are left out, too.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > max(negligible(values, matrix.shape), noise)).sum())
    return SingularFactors(left, values, right).largest(rank)


def _rounding(weights: Tensor) -> Tensor:
    """The singular value that rounding to their dtype can give matrices: ``[n, e, r, c]`` ->
    ``[n, e]`` float64.

    A LoRA is added to its base before it is rounded, so its task vector is not of low rank any
    more: the other directions hold rounding errors, of about 0.2 times this length. A change that
    a format of 16 bits holds is longer.
    """
    # A matrix of random entries of sizes s has singular values up to the lengths of the longest row
    # and column of s, added up; rounding's s is at most half a unit in the last place.
    squares = weights.double().square()
    longest = squares.sum(dim=-1).sqrt().amax(dim=-1) + squares.sum(dim=-2).sqrt().amax(dim=-1)
    return longest * torch.finfo(weights.dtype).eps


def negligible(values: Tensor, shape: Sequence[int]) -> float:
    """The size up to which singular or eigen values are rounding errors.

    Args:
        values: ``[k]``, not negative.
        shape: of the matrix that they belong to.
    """
    largest = float(values.max()) if values.numel() else 0.0
    return largest * max(shape) * torch.finfo(values.dtype).eps


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """The polar factor: the matrix with orthonormal columns (or rows, if wide) that is nearest.

    Args:
        matrix: ``[r, k]``.

    Returns:
        ``[r, k]``, ``P @ Q`` of the singular value decomposition ``P @ diag(s) @ Q``.
    """
    left, _, right = decompose(matrix)
    return left @ right
