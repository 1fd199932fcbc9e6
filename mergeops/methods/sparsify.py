"""Making task vectors sparse: keep the largest entries, or keep entries at random.

``find_cuts`` finds exactly which k entries of a tensor are the largest without sorting or holding
it: the bits of a non-negative float order like integers, so a histogram of the high bits finds
the bin of the k-th largest, and a histogram of the next bits inside that bin refines it (radix
selection). Memory is one histogram, whatever the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeops.methods import Scan
from mergeops.methods.randomness import keep_mask

DIGIT_BITS = 16


@dataclass(frozen=True)
class Cut:
    """Which entries stay: those above ``key``, and those equal to it up to index ``last``."""

    key: int
    last: int


KEEP_ALL = Cut(-1, -1)
KEEP_NONE = Cut(2**63 - 1, -1)


def find_cuts(scan: Scan, densities: Sequence[float], numel: int) -> tuple[Cut, ...]:
    """The cut of each task vector that keeps exactly ``int(density * numel)`` largest entries.

    Among equal magnitudes at the cut, the entries with the lowest index stay.

    Args:
        scan: passes over the tensor.
        densities: n shares, 0 to 1.
        numel: elements of the tensor.
    """
    n = len(densities)
    cuts: list[Cut | None] = [None] * n
    wanted = [int(density * numel) for density in densities]
    for i in range(n):
        if wanted[i] >= numel:
            cuts[i] = KEEP_ALL
        elif wanted[i] == 0:
            cuts[i] = KEEP_NONE
    prefixes = [0] * n
    shift: int | None = None
    ties: dict[int, int] = {}
    open_sources = [i for i in range(n) if cuts[i] is None]
    while open_sources and shift != 0:
        histogram, bits = _histogram(scan, open_sources, prefixes, shift)
        shift = (bits if shift is None else shift) - DIGIT_BITS
        for row, i in zip(histogram, open_sources, strict=True):
            digit, above = _find_digit(row, wanted[i])
            wanted[i] -= above
            prefixes[i] = (prefixes[i] << DIGIT_BITS) | digit
            ties[i] = int(row[digit])
    undecided = [i for i in open_sources if wanted[i] < ties[i]]
    lasts = _find_last_ties(scan, undecided, prefixes, wanted) if undecided else {}
    for i in open_sources:
        cuts[i] = Cut(prefixes[i], lasts.get(i, numel))
    return tuple(cut for cut in cuts if cut is not None)


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
                torch.hardshrink(part, _magnitude(key, delta.dtype), out=part)
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
        bits = _bits(delta.dtype)
        delta.view(bits).bitwise_and_(mask.to(bits))
        if rescale and density > 0:
            delta *= 1.0 / density
    return deltas


def magnitude_keys(deltas: Tensor) -> Tensor:
    """Integers that order like the magnitudes: the bits of ``|deltas|``."""
    return deltas.abs().view(_bits(deltas.dtype))


def _magnitude(key: int, dtype: torch.dtype) -> float:
    """The number whose key this is."""
    return float(torch.tensor(key, dtype=_bits(dtype)).view(dtype))


def _bits(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.float32 else torch.int64


def _histogram(
    scan: Scan, sources: Sequence[int], prefixes: Sequence[int], shift: int | None
) -> tuple[Tensor, int]:
    """Counts ``[len(sources), bins]`` of the digit after the prefix, and how many bits a key has.

    ``shift`` is the position of the prefix in the key; None counts the highest digit.
    """
    bits = 0
    # The highest bit of a magnitude is 0, so the first digit has one bit less.
    bins = 2**DIGIT_BITS if shift is not None else 2 ** (DIGIT_BITS - 1)

    def look(base: Tensor, rows: Tensor, offset: int) -> Tensor:
        nonlocal bits
        counts = []
        for i in sources:
            digits = magnitude_keys(rows[i] - base)
            bits = 8 * digits.element_size()
            if shift is None:
                digits >>= bits - DIGIT_BITS
            else:
                # With the prefix taken off, only keys that have it are below 2**shift; the others
                # go to bins beyond the last, spread out since counting one bin is slow.
                digits ^= prefixes[i] << shift
                others = torch.bitwise_right_shift(digits, bits - DIGIT_BITS).add_(bins)
                digits >>= shift - DIGIT_BITS
                torch.minimum(digits, others, out=digits)
            counts.append(torch.bincount(digits, minlength=bins)[:bins])
        return torch.stack(counts)

    total = torch.zeros(len(sources), bins, dtype=torch.int64)
    for counts in scan(look):
        total += counts
    return total, bits


def _find_digit(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest (k from 1), and how many lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return histogram.numel() - 1 - position, above


def _find_last_ties(
    scan: Scan, sources: Sequence[int], cut_keys: Sequence[int], wanted: Sequence[int]
) -> dict[int, int]:
    """Index of the ``wanted[i]``-th entry whose key equals ``cut_keys[i]``, for each source."""

    def count(base: Tensor, rows: Tensor, offset: int) -> Tensor:
        ties = [torch.count_nonzero(_ties(base, rows[i], cut_keys[i])) for i in sources]
        return torch.stack([*ties, torch.tensor(rows.shape[1], device=rows.device)])

    left = {i: wanted[i] for i in sources}
    place: dict[int, tuple[int, int]] = {}
    offset = 0
    for counts in scan(count):
        *found, size = counts.tolist()
        for ties, i in zip(found, sources, strict=True):
            if i in place:
                continue
            if left[i] > ties:
                left[i] -= ties
            else:
                place[i] = (offset, offset + size)
        offset += size
        if len(place) == len(sources):
            break
    lasts = {}
    for i, (start, stop) in place.items():

        def positions(base: Tensor, rows: Tensor, offset: int, i: int = i) -> Tensor:
            return _ties(base, rows[i], cut_keys[i]).nonzero()[:, 0] + offset

        lasts[i] = int(torch.cat(list(scan(positions, start, stop)))[left[i] - 1])
    return lasts


def _ties(base: Tensor, source: Tensor, key: int) -> Tensor:
    return magnitude_keys(source - base) == key
