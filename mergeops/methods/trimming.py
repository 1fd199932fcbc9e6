"""Two-sided trimming: drop a task vector's largest entries, as outliers, and its smallest ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mergeops.deferred import torch
from mergeops.methods import Place, Scan
from mergeops.methods.fused import Formula
from mergeops.methods.selection import KEEP_NONE, Cut, find_largest
from mergeops.methods.sparsify import delta_keys, keep_largest, multiply, norm_factors

if TYPE_CHECKING:
    from torch import Tensor


class Window(NamedTuple):
    """What stays: the entries above ``outer`` that are not above ``inner``."""

    outer: Cut
    inner: Cut


class Trim(NamedTuple):
    """How breadcrumbs trim the task vectors of one tensor."""

    windows: tuple[Window, ...]
    factors: tuple[float, ...]


def find_trim(scan: Scan, at: Place, *, rescale: bool) -> Trim:
    """Windows from the sources' ``density`` and ``gamma``; factors that keep the L1 norm, or 1."""
    density, gamma = at.per_source["density"], at.per_source["gamma"]
    windows = find_windows(scan, density, gamma, at.numel)
    if not rescale:
        return Trim(windows, (1.0,) * len(windows))

    def keep(deltas: Tensor, offset: int) -> Tensor:
        return keep_between(deltas, windows, offset)

    formula = Formula([1.0] * len(windows), windows=windows)
    return Trim(windows, norm_factors(scan, keep, formula))


def trim(deltas: Tensor, how: Trim, offset: int) -> Tensor:
    """Trim and rescale a chunk ``[n, m]`` of the task vectors, in place."""
    return multiply(keep_between(deltas, how.windows, offset), how.factors)


def find_windows(
    scan: Scan, densities: Sequence[float], gammas: Sequence[float], numel: int
) -> tuple[Window, ...]:
    """The window of each task vector that keeps exactly ``int(density * numel)`` entries.

    Above it lie the ``int(gamma * numel)`` largest entries, or as many as the density leaves.

    Args:
        scan: passes over the tensor.
        densities: n shares, 0 to 1.
        gammas: n shares, 0 to 1.
        numel: elements of the tensor.
    """
    targets = []
    for i, (density, gamma) in enumerate(zip(densities, gammas, strict=True)):
        kept = int(density * numel)
        outliers = min(int(gamma * numel), numel - kept)
        targets += [(i, kept + outliers), (i, outliers)]
    cuts = find_largest(scan, delta_keys, targets, numel, of_task_vectors=True)
    return tuple(map(Window, cuts[::2], cuts[1::2]))


def keep_between(deltas: Tensor, windows: Sequence[Window], offset: int) -> Tensor:
    """Set all entries outside their source's window to zero, in place.

    Args:
        deltas: ``[n, m]``, a chunk of the task vectors.
        windows: from ``find_windows``.
        offset: index of the chunk's first entry.
    """
    for delta, (outer, inner) in zip(deltas, windows, strict=True):
        outliers = None
        if inner != KEEP_NONE:
            outliers = keep_largest(delta.clone()[None], [inner], offset)[0]
        keep_largest(delta[None], [outer], offset)
        if outliers is not None:
            # Outliers are what stays or zero, so this is exact.
            torch.sub(delta, outliers, out=delta)
    return deltas
