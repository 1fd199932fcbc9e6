"""Weighted sums in a fixed order, so that every device rounds alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def weighted_sum(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """Sum of ``weights[i] * rows[i]``, from the first row to the last.

    Args:
        rows: ``[n, m]``, n at least 1.
        weights: n numbers.

    Returns:
        ``[m]``, a new tensor.
    """
    total = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        # Not add_(row, alpha=weight): that is a fused multiply-add on some devices only.
        total += row * weight
    return total
