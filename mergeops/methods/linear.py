"""Model soup: the weighted mean of the weights.

Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 2 (uniform soup).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.errors import ConfigError
from mergeops.methods import Place, method
from mergeops.methods.fused import Formula
from mergeops.methods.weighting import factors, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Parameters of ``linear``."""

    weight: float = 1.0
    """Weight of a source that sets none."""
    normalize: bool = True
    """Divide by the sum of the weights, so that the result is a mean."""


def check(per_source: Mapping[str, Sequence[float]], p: Linear) -> None:
    """Refuse a mean whose weights cancel."""
    weights = per_source["weight"]
    if p.normalize and abs(sum(weights)) < 1e-6 * max(1.0, sum(map(abs, weights))):
        raise ConfigError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} add up to {sum(weights):g}, which "
            "linear cannot normalize; change them or set method.normalize=false"
        )


def formula(p: Linear, at: Place, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula(factors(at.per_source["weight"], 1.0, normalize=p.normalize))


@method("linear", source_parameters=("weight",), check=check, formula=formula)
def merge(base: Tensor | None, sources: Tensor, p: Linear, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the weights.

    Returns:
        ``[m]``, the weighted sum, divided by the sum of the weights with ``normalize``.
    """
    return weighted_sum(sources, factors(at.per_source["weight"], 1.0, normalize=p.normalize))
