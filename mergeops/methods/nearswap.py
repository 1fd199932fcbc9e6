"""NearSwap: let the source move each weight of the base, but by no more than t.

Alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001. Where the two are
near, the result is the source; where they differ much, it is nearly the base.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergeops.lazy_torch import Tensor
from mergeops.methods.registry import MethodView, method
from mergeops.methods.steps.entry_formulas import Clamped
from mergeops.schema import check_range


@dataclass(frozen=True)
class NearSwap:
    """Parameters of ``nearswap``."""

    t: float = 0.0001
    """How far a weight may move from the base."""

    def __post_init__(self) -> None:
        check_range("method.t", self.t, 0.0, None)


def formula(p: NearSwap, at: MethodView, n: int) -> Clamped | None:
    """What ``merge`` does; nothing at zero, whose sign may be either there."""
    return Clamped(p.t) if np.float32(p.t) > 0 else None


@method("nearswap", needs_base=True, max_sources=1, formula=formula)
def merge(base: Tensor, sources: Tensor, p: NearSwap, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[1, m]``.
        p: parameters.
        at: not used.

    Returns:
        ``[m]``. The original formula, a blend with weight ``min(t / |source - base|, 1)``, is a
        change clamped to ``t``: written so, nothing is divided.
    """
    return base + (sources[0] - base).clamp_(-p.t, p.t)
