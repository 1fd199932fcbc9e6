"""RAM+ per tensor: RAM, where a source's own changes grow with how much it shares with others.

Yuan et al. 2026, https://arxiv.org/abs/2601.13572, section 4 (Reinforced Agent Merging), with the
overlap counted in each tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, Scan, method
from mergeops.methods.overlap import add_changes, count_changes
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RamPlusTensorLevel:
    """Parameters of ``ramplus_tl``."""

    r: float = 0.1
    """How much a source's own changes grow with its overlap ratio (shared / unique changes)."""
    alpha: float = 0.2
    """Highest overlap ratio that counts."""
    epsilon: float = 1e-5
    """A weight has changed where it differs from the base by more than this."""

    def __post_init__(self) -> None:
        check_range("method.r", self.r, 0.0, None)
        check_range("method.alpha", self.alpha, 0.0, None)
        check_range("method.epsilon", self.epsilon, 0.0, None)


def factors(scan: Scan, p: RamPlusTensorLevel, at: Place) -> list[float]:
    """The factor on each source's unique changes, ``1 + r * min(shared / unique, alpha)``."""

    def look(base: Tensor, sources: Tensor, offset: int) -> Tensor:
        return count_changes(sources - base, p.epsilon)

    shared, unique = sum(scan(look)).tolist()
    # A source without unique changes has nothing that the factor could be applied to.
    return [1.0 + p.r * min(s / max(u, 1), p.alpha) for s, u in zip(shared, unique, strict=True)]


@method("ramplus_tl", needs_base=True, statistics=factors)
def merge(base: Tensor, sources: Tensor, p: RamPlusTensorLevel, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: gives the factors of unique changes.

    Returns:
        ``[m]``. Entries that no source changed stay at ``base``.
    """
    return base + add_changes(sources - base, p.epsilon, at.statistics)
