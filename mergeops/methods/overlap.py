"""Which entries several sources changed and which a single one did, for ram and ramplus_tl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeops.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor


def add_changes(deltas: Tensor, epsilon: float, factors: Sequence[float]) -> Tensor:
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
        # The divisor is 1 where nobody changed anything, and the sum 0.
        part = delta.masked_fill(~mine, 0.0)
        change += part if factor == 1.0 else torch.where(unique, part * factor, part)
    return change / count.clamp(min=1).to(change.dtype)


def count_changes(deltas: Tensor, epsilon: float) -> Tensor:
    """How many entries each source changed together with others, and how many alone.

    Args:
        deltas: ``[n, m]``, task vectors.
        epsilon: an entry counts as changed above this magnitude.

    Returns:
        ``[2, n]`` int64: shared, unique.
    """
    changed, count = _changed(deltas, epsilon)
    shared = [torch.count_nonzero(mine & (count > 1)) for mine in changed]
    unique = [torch.count_nonzero(mine & (count == 1)) for mine in changed]
    return torch.stack([torch.stack(shared), torch.stack(unique)])


def _changed(deltas: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    changed = deltas.abs() > epsilon
    return changed, changed.sum(dim=0)
