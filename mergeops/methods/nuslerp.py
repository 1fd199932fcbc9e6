"""NuSLERP: walk along the arc between two sources, by weight, for tensors, rows or columns.

Shoemake 1985, https://doi.org/10.1145/325165.325242, section 3.3; with a base, the arc lies between
the two task vectors. Norms and dot products are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.columns import column_products, spread
from mergeops.methods.steps.fused import Formula
from mergeops.methods.steps.reduction import gram, row_sums, vectors
from mergeops.methods.steps.weighting import check_normalize

LEAST_SINE = 1e-8
"""Below this the two directions are one, and the arc is the straight line."""
OPPOSITE_SINE = 1e-3
"""Below this, two opposite directions leave it to rounding on which side the arc goes round."""


@dataclass(frozen=True)
class NuSlerp:
    """Parameters of ``nuslerp``."""

    weight: float = 1.0
    """Weight of a source that sets none; the second one's share of the sum is the place on the
    arc."""
    nuslerp_flatten: bool = True
    """Take each tensor as one vector."""
    nuslerp_row_wise: bool = False
    """Without flatten: arcs between columns (vectors along the first dimension), not between
    rows (along the last)."""


def whole_rows(p: NuSlerp) -> bool:
    """Arcs between rows need whole rows."""
    return not p.nuslerp_flatten and not p.nuslerp_row_wise


def factors(scan: Scan, p: NuSlerp, at: MethodView) -> tuple[float, float] | Tensor | None:
    """The factors of the two sources: two numbers, or ``[2, c]`` for c columns, of which 16 bytes
    each stay in memory while the tensor is merged."""
    if whole_rows(p):
        return None
    if p.nuslerp_flatten:
        (aa, ab), (_, bb) = gram(scan)
        return _arc(aa, ab, bb, _place_on_arc(at))
    length = at.shape[0] if at.shape else 1
    columns = column_products(scan, at.numel // length, length)
    return torch.cat([_arc_factors(part, _place_on_arc(at)) for part in columns], dim=1)


def formula(p: NuSlerp, at: MethodView, n: int) -> Formula | None:
    """The two factors as weights, where each tensor is one vector."""
    return Formula(at.statistics) if p.nuslerp_flatten else None


@method(
    "nuslerp",
    source_parameters=("weight",),
    optional_base=True,
    min_sources=2,
    max_sources=2,
    statistics=factors,
    check=check_normalize("nuslerp", switch=None),
    whole_rows=whole_rows,
    formula=formula,
)
def merge(base: Tensor | None, sources: Tensor, p: NuSlerp, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, or None to go between the weights themselves.
        sources: ``[2, m]``, from and to.
        p: parameters.
        at: gives weights, and the factors or the length of a row.

    Returns:
        ``[m]``. The straight line where a vector is zero or the two are parallel or opposite.
    """
    rows = vectors(base, sources)
    a, b = rows
    if whole_rows(p):
        a, b = rows.view(2, -1, at.row_length)
        # Dot products aa, ab and bb of each row.
        exact_a, exact_b = a.double(), b.double()
        products = [row_sums(x * y) for x, y in ((exact_a, exact_a), (exact_a, exact_b))]
        products.append(row_sums(exact_b * exact_b))
        of_rows = _arc_factors(torch.stack(products).cpu(), _place_on_arc(at))[..., None]
        first, second = of_rows.to(rows)
    elif p.nuslerp_flatten:
        first, second = at.statistics
    else:
        first, second = spread(at.statistics, at.offset, rows.shape[1]).to(rows)
    change: Tensor = (a * first + b * second).view(-1)
    return change if base is None else base + change


def _place_on_arc(at: MethodView) -> float:
    """Shoemake's t: the second source's share of the weights."""
    first, second = at.per_source["weight"]
    return second / (first + second) if first or second else 0.5


def _arc(aa: float, ab: float, bb: float, t: float) -> tuple[float, float]:
    """Shoemake's factors of two vectors, from their dot products."""
    if aa == 0.0 or bb == 0.0:
        return 1.0 - t, t
    # Cosine of the angle theta between the two vectors.
    cosine = max(-1.0, min(1.0, ab / (math.sqrt(aa) * math.sqrt(bb))))
    angle = math.acos(cosine)
    sine = math.sin(angle)
    if sine < (LEAST_SINE if cosine > 0 else OPPOSITE_SINE):
        return 1.0 - t, t
    # sin((1 - t) theta) / sin(theta) and sin(t theta) / sin(theta).
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def _arc_factors(products: Tensor, t: float) -> Tensor:
    """The same ``[2, c]`` from the dot products aa, ab, bb ``[3, c]``, on the CPU."""
    aa, ab, bb = products
    has_no_angle = (aa == 0) | (bb == 0)
    length = (aa.sqrt() * bb.sqrt()).masked_fill(has_no_angle, 1.0)
    cosine = (ab / length).clamp_(-1.0, 1.0)
    angle = cosine.acos()
    sine = angle.sin()
    # Where the arc is the straight line, by the factors 1 - t and t.
    straight = has_no_angle | (sine < torch.where(cosine > 0, LEAST_SINE, OPPOSITE_SINE))
    sine.masked_fill_(straight, 1.0)
    first = torch.where(straight, 1.0 - t, ((1.0 - t) * angle).sin() / sine)
    second = torch.where(straight, t, (t * angle).sin() / sine)
    return torch.stack([first, second])
