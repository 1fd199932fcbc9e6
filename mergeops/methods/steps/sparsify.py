"""Making task vectors sparse: keep the largest entries, or keep entries at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergeops.errors import ConfigError
from mergeops.kernels import BLOCK
from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import Scan
from mergeops.methods.steps.counting import Magnitudes
from mergeops.methods.steps.fused import Array, Bits, Formula
from mergeops.methods.steps.randomness import keep_mask
from mergeops.methods.steps.reduction import block_sums, row_sums, total
from mergeops.methods.steps.selection import (
    KEEP_ALL,
    KEEP_NONE,
    Cut,
    find_largest,
    key_dtype,
    magnitude,
    magnitude_keys,
)

TINY_NORM = 1e-30
"""Below this sum of magnitudes a task vector counts as zero: there is no norm to keep."""

Sparsify = Callable[[Tensor, int], Tensor]
"""``sparsify(deltas [n, m], offset) -> [n, m]``; may overwrite its argument."""


def find_cuts(scan: Scan, densities: Sequence[float], numel: int) -> tuple[Cut, ...]:
    """The cut of each task vector that keeps exactly ``int(density * numel)`` largest entries.

    Among equal magnitudes at the cut, the entries with the lowest index stay.

    Args:
        scan: passes over the tensor.
        densities: n shares, 0 to 1.
        numel: elements of the tensor.
    """
    targets = [(i, int(density * numel)) for i, density in enumerate(densities)]
    return find_largest(scan, delta_keys, targets, numel, counted=Magnitudes())


def delta_keys(base: Tensor | None, sources: Tensor, row: int, offset: int) -> Tensor:
    """Keys of the magnitudes of task vector ``row``."""
    assert base is not None
    return magnitude_keys(sources[row] - base)


def keep_largest(deltas: Tensor, cuts: Sequence[Cut], offset: int) -> Tensor:
    """Set all entries below their source's cut to zero, in place.

    Args:
        deltas: ``[n, m]``, a chunk of the task vectors.
        cuts: from ``find_cuts``.
        offset: index of the chunk's first entry.
    """
    for delta, cut in zip(deltas, cuts, strict=True):
        if cut == KEEP_ALL:
            continue
        if cut == KEEP_NONE:
            delta.zero_()
            continue
        # hardshrink keeps what is above its bound: one below the cut up to the last tie that stays.
        end = min(max(cut.last + 1 - offset, 0), delta.numel())
        for part, key in ((delta[:end], cut.key - 1), (delta[end:], cut.key)):
            if key >= 0:
                torch.hardshrink(part, magnitude(key, delta.dtype), out=part)
    return deltas


def drop_random(
    deltas: Tensor, densities: Sequence[float], keys: Sequence[int], offset: int, *, rescale: bool
) -> Tensor:
    """Keep each entry with probability density, in place.

    Args:
        deltas: ``[n, m]``, a chunk of the task vectors.
        densities: n probabilities.
        keys: n random keys.
        offset: index of the chunk's first entry.
        rescale: divide what stays by the density, so that the expectation stays.
    """
    for delta, density, key in zip(deltas, densities, keys, strict=True):
        if density == 1.0:
            continue
        mask = keep_mask(density, key, offset, delta.numel(), delta.device)
        bits = key_dtype(delta.dtype)
        delta.view(bits).bitwise_and_(mask.to(bits))
        if rescale and density > 0:
            delta *= 1.0 / density
    return deltas


def norm_factors(
    scan: Scan, sparsify: Sparsify, formula: Formula, *, row_length: int | None = None
) -> tuple[float, ...]:
    """What each sparse task vector is multiplied by to have the L1 norm that it had before.

    Args:
        scan: passes over the tensor.
        sparsify: what is done to the task vectors.
        formula: that does the same to them.
        row_length: of the rows, where the scan gives whole rows.

    Returns:
        n factors; 1 where a norm is zero before or after.
    """

    def look(base: Tensor, sources: Tensor, offset: int) -> Tensor:
        deltas = sources - base
        before = deltas.abs().double()
        after = sparsify(deltas, offset).abs().double()
        rows = [*before, *after]
        if row_length is not None:
            return torch.stack([row_sums(row.view(-1, row_length)) for row in rows])
        return torch.stack([block_sums(row) for row in rows])

    def add_up(bits: Bits) -> Array | None:
        return formula.norms(bits, row_length or bits.m, row_length or BLOCK)

    sums = total(scan(look, fused=add_up))
    n = len(sums) // 2
    return tuple(
        before / after if min(before, after) > TINY_NORM else 1.0
        for before, after in zip(sums[:n], sums[n:], strict=True)
    )


def check_match_norm(rescale: bool, match_norm: bool) -> None:
    """Refuse to match norms without rescaling.

    Raises:
        ConfigError: says which to change.
    """
    if match_norm and not rescale:
        raise ConfigError(
            "method.match_norm is true, but method.rescale is false: it says how to rescale; set "
            "rescale=true or match_norm=false"
        )


def always(p: object) -> bool:
    """For methods that take whole rows whatever their parameters are."""
    return True
