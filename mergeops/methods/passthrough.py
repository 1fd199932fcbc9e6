"""Pass one source through, at most scaled: the method of stacked layers (frankenmerges).

Kim et al. 2023, https://arxiv.org/abs/2312.15166, section 2 (depth up-scaling), without training.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.fused import Formula


@dataclass(frozen=True)
class Passthrough:
    """Parameters of ``passthrough``."""

    scale: float = 1.0
    """Factor on the source's weights."""


def formula(p: Passthrough, at: MethodView, n: int) -> Formula:
    """The factor as a weight."""
    return Formula(at.per_source["scale"])


@method("passthrough", source_parameters=("scale",), max_sources=1, formula=formula)
def merge(base: Tensor | None, sources: Tensor, p: Passthrough, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: not used.
        sources: ``[1, m]``.
        p: parameters.
        at: gives the factor.

    Returns:
        ``[m]``, the source times ``scale``.
    """
    (scale,) = at.per_source["scale"]
    return sources[0] * scale
