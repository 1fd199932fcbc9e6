"""SLERP: walk along the arc from the first source to the second.

Shoemake 1985, https://doi.org/10.1145/325165.325242, section 3.3, each whole tensor being one
vector. Norms and the dot product are summed in float64, block by block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.reduction import gram
from mergeops.methods.steps.weighting import weighted_sum
from mergeops.schema import check_range

PARALLEL = 0.9995
"""Above this |cosine| the arc is so flat or so undefined that a straight line is taken."""
TINY_NORM = 1e-8
"""Vectors shorter than this have no direction."""


@dataclass(frozen=True)
class Slerp:
    """Parameters of ``slerp``."""

    t: float = 0.5
    """Where on the arc: 0 is the first source, 1 the second."""

    def __post_init__(self) -> None:
        check_range("method.t", self.t, 0.0, 1.0)


def coefficients(scan: Scan, p: Slerp, at: MethodView) -> tuple[float, float]:
    """The factors of the two sources, from their angle over the whole tensor."""
    (aa, ab), (_, bb) = gram(scan)
    # Norms of the two sources, and the angle omega between them.
    norm_a, norm_b = math.sqrt(aa), math.sqrt(bb)
    if norm_a < TINY_NORM or norm_b < TINY_NORM:
        return 1.0 - p.t, p.t
    cosine = ab / norm_a / norm_b
    if abs(cosine) > PARALLEL:
        return 1.0 - p.t, p.t
    angle = math.acos(cosine)
    # sin((1 - t) omega) / sin(omega) and sin(t omega) / sin(omega).
    return (
        math.sin((1.0 - p.t) * angle) / math.sin(angle),
        math.sin(p.t * angle) / math.sin(angle),
    )


def formula(p: Slerp, at: MethodView, n: int) -> Formula:
    """The two factors as weights."""
    return Formula(at.statistics)


@method(
    "slerp",
    min_sources=2,
    max_sources=2,
    order_matters=True,
    statistics=coefficients,
    formula=formula,
)
def merge(base: Tensor | None, sources: Tensor, p: Slerp, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[2, m]``, from and to.
        p: parameters.
        at: gives the two factors.

    Returns:
        ``[m]``. Where the two are nearly parallel or one is zero: the straight line between them.
    """
    return weighted_sum(sources, at.statistics)
