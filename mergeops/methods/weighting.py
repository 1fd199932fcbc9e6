"""Weighted sums in a fixed order, so that every device rounds alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeops.errors import ConfigError

if TYPE_CHECKING:
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


def check_mean(method: str, weights: Sequence[float], switch: str | None = None) -> None:
    """Refuse to divide by weights that cancel.

    Args:
        method: its name.
        weights: of the sources.
        switch: the parameter that turns the division off, if there is one.

    Raises:
        ConfigError: the sum is zero but for rounding, and not all weights are zero.
    """
    if any(weights) and abs(sum(weights)) < 1e-6 * max(1.0, sum(map(abs, weights))):
        remedy = f"change them or set method.{switch}=false" if switch else "change them"
        raise ConfigError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} add up to {sum(weights):g}, which "
            f"{method} cannot normalize; {remedy}"
        )


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum; as they are where all are zero."""
    whole = sum(weights) if any(weights) else 1.0
    return tuple(weight / whole for weight in weights)


def factors(weights: Sequence[float], scale: float, *, normalize: bool) -> list[float]:
    """What each task vector is multiplied by: its weight or share, times ``scale``."""
    return [scale * weight for weight in (shares(weights) if normalize else weights)]
