"""Weighted sums in a fixed order, so that every device rounds alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.errors import ConfigError
from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import CheckFunction


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


def multiply(rows: Tensor, factors: Sequence[float]) -> Tensor:
    """Multiply each row by its factor, in place."""
    for row, factor in zip(rows, factors, strict=True):
        if factor != 1.0:
            row *= factor
    return rows


def check_normalize(
    method: str, switch: str | None = "normalize", *, takes_zeros: bool = True
) -> CheckFunction:
    """A method's ``check``: refuse to divide by weights whose sum is zero but for rounding.

    Args:
        method: its name.
        switch: the parameter that turns the division on and off; None where it is always on.
        takes_zeros: whether the method does without dividing if all weights are zero.
    """
    remedy = f"change them or set method.{switch}=false" if switch else "change them"

    def check(per_source: Mapping[str, Sequence[float]], p: Any) -> None:
        weights = per_source["weight"]
        if (switch and not getattr(p, switch)) or (takes_zeros and not any(weights)):
            return
        if abs(sum(weights)) < 1e-6 * max(1.0, sum(map(abs, weights))):
            raise ConfigError(
                f"the weights {', '.join(f'{w:g}' for w in weights)} add up to {sum(weights):g}, "
                f"which {method} cannot normalize; {remedy}"
            )

    return check


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum; as they are where all are zero."""
    whole = sum(weights) if any(weights) else 1.0
    return tuple(weight / whole for weight in weights)


def factors(weights: Sequence[float], scale: float, *, normalize: bool) -> list[float]:
    """What each task vector is multiplied by: its weight or share, times ``scale``."""
    return [scale * weight for weight in (shares(weights) if normalize else weights)]
