"""RAM: average what several sources changed, keep in full what a single one changed.

Yuan et al. 2026, https://arxiv.org/abs/2601.13572, section 4 (Reinforced Agent Merging).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import MethodView, Scan, method
from mergeops.methods.steps.entry_formulas import Reinforced, overlap
from mergeops.schema import check_range


@dataclass(frozen=True)
class Ram:
    """Parameters of ``ram``."""

    epsilon: float = 1e-5
    """A weight has changed where it differs from the base by more than this."""

    def __post_init__(self) -> None:
        check_range("method.epsilon", self.epsilon, 0.0, None)


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


def factors(scan: Scan, p: RamPlusTensorLevel, at: MethodView) -> list[float]:
    """The factor on each source's unique changes, ``1 + r * min(shared / unique, alpha)``."""

    def look(base: Tensor, sources: Tensor, offset: int) -> Tensor:
        changed, count = _changed(sources - base, p.epsilon)
        shared = [torch.count_nonzero(mine & (count > 1)) for mine in changed]
        unique = [torch.count_nonzero(mine & (count == 1)) for mine in changed]
        return torch.stack([torch.stack(shared), torch.stack(unique)])

    counts = scan(look, fused=lambda bits: overlap(bits, p.epsilon))
    # How many entries each source changed together with others, and how many alone.
    shared, unique = np.sum(list(map(np.asarray, counts)), axis=0).tolist()
    # A source without unique changes has nothing that the factor could be applied to.
    return [1.0 + p.r * min(s / max(u, 1), p.alpha) for s, u in zip(shared, unique, strict=True)]


def formula(p: Ram, at: MethodView, n: int) -> Reinforced:
    """What ``ram`` does."""
    return Reinforced(p.epsilon, [1.0] * n)


def formula_plus(p: RamPlusTensorLevel, at: MethodView, n: int) -> Reinforced:
    """What ``ramplus_tl`` does."""
    return Reinforced(p.epsilon, at.statistics)


@method("ram", needs_base=True, formula=formula)
def ram(base: Tensor, sources: Tensor, p: Ram, at: MethodView) -> Tensor:
    """Merge one chunk.

    Args:
        base: ``[m]``, the common ancestor.
        sources: ``[n, m]``, recipe order.
        p: parameters.
        at: not used.

    Returns:
        ``[m]``. Entries that no source changed stay at ``base``.
    """
    return base + _add_changes(sources - base, p.epsilon, [1.0] * len(sources))


@method("ramplus_tl", needs_base=True, statistics=factors, formula=formula_plus)
def ramplus_tl(base: Tensor, sources: Tensor, p: RamPlusTensorLevel, at: MethodView) -> Tensor:
    """RAM+ per tensor: RAM, where a source's own changes grow with how much it shares with others.

    Yuan et al. 2026, https://arxiv.org/abs/2601.13572, section 4 (Reinforced Agent Merging), with
    the overlap counted in each tensor.

    Takes and returns what ``ram`` does; ``at`` gives the factors of unique changes.
    """
    return base + _add_changes(sources - base, p.epsilon, at.statistics)


def _add_changes(deltas: Tensor, epsilon: float, factors: Sequence[float]) -> Tensor:
    """Average shared changes, add unique ones.

    Args:
        deltas: ``[n, m]``, task vectors.
        epsilon: an entry counts as changed above this magnitude.
        factors: n factors on the sources' unique changes.

    Returns:
        ``[m]``, zero where nobody changed anything.
    """
    changed, count = _changed(deltas, epsilon)
    unique = count == 1
    change = torch.zeros_like(deltas[0])
    for delta, mine, factor in zip(deltas, changed, factors, strict=True):
        part = delta.masked_fill(~mine, 0.0)
        change += part if factor == 1.0 else torch.where(unique, part * factor, part)
    # The mean over the sources that changed an entry; where none did, 0 is divided by 1.
    return change / count.clamp(min=1).to(change.dtype)


def _changed(deltas: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Which entries each source changed ``[n, m]``, and how many sources changed each ``[m]``."""
    changed = deltas.abs() > epsilon
    return changed, changed.sum(dim=0)
