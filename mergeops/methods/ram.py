"""RAM: average what several sources changed, keep in full what a single one changed.

Yuan et al. 2026, https://arxiv.org/abs/2601.13572, section 4 (Reinforced Agent Merging).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.methods import Place, method
from mergeops.methods.overlap import add_changes
from mergeops.schema import check_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ram:
    """Parameters of ``ram``."""

    epsilon: float = 1e-5
    """A weight has changed where it differs from the base by more than this."""

    def __post_init__(self) -> None:
        check_range("method.epsilon", self.epsilon, 0.0, None)


@method("ram", needs_base=True)
def merge(base: Tensor, sources: Tensor, p: Ram, at: Place) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: not used.

    Returns:
        ``[m]``. Entries that no source changed stay at ``base``.
    """
    return base + add_changes(sources - base, p.epsilon, [1.0] * len(sources))
