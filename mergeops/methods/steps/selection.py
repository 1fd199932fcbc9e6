"""Exactly which k entries of a tensor are the largest, without sorting or holding it.

The bits of a non-negative float order like integers, so a histogram of the high bits finds the bin
of the k-th largest, and a histogram of the next bits inside that bin refines it (radix selection).
Memory is a few histograms, whatever the tensor.

With keys of 32 bits, two passes find the k-th largest key: the first one counts the high 16 bits of
all entries, the second one the low 16 bits of those whose high bits are right. Where more entries
have this key than may stay, a look at one part of the tensor finds the last that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import Scan
from mergeops.methods.steps.counting import (
    DIGIT_BITS,
    CountedKeys,
    DigitCounter,
    Magnitudes,
    not_empty,
)
from mergeops.methods.steps.fused import Array, Bits

MAGNITUDE_BITS = 32
"""Of the keys that kernels count: those of float32."""
MOST_COUNTS = 1 << 22
"""Array of a tensor's parts that are kept, of 16 bytes each."""

Keys = Callable[[Tensor | None, Tensor, int, int], Tensor]
"""``keys(base, sources, row, offset) -> [m]`` int32 or int64, not negative, larger for larger; a
new tensor, which may be overwritten."""


class Cut(NamedTuple):
    """Which entries stay: those above ``key``, and those equal to it up to index ``last``."""

    key: int
    last: int


KEEP_ALL = Cut(-1, -1)
KEEP_NONE = Cut(2**63 - 1, -1)


@dataclass
class _Search:
    """The k-th largest key of one row, found digit by digit."""

    row: int
    wanted: int
    """Its place from the top among the keys with this prefix."""
    prefix: int = 0
    ties: int = 0
    """How many keys have this prefix."""
    places: Sequence[tuple[int, int]] = ()
    """Stretches of the tensor, one after the other: how many entries, and how many ties."""


def find_largest(
    scan: Scan,
    keys: Keys,
    targets: Sequence[tuple[int, int]],
    numel: int,
    *,
    counted: CountedKeys | None = None,
) -> tuple[Cut, ...]:
    """The cuts that keep exactly the k largest entries of a row, for each target ``(row, k)``.

    Among equal keys at the cut, the entries with the lowest index stay.

    Args:
        scan: passes over the tensor.
        keys: what to compare.
        targets: row, as ``keys`` understands it, and number of entries to keep.
        numel: elements of the tensor.
        counted: the keys, where kernels know how to count them: without factors.
    """
    searches = [_Search(row, k) for row, k in targets]
    # Those that keep some entries and drop some.
    _refine(scan, keys, [s for s in searches if 0 < s.wanted < numel], counted)
    cuts = []
    for search, (_, k) in zip(searches, targets, strict=True):
        if k <= 0:
            cuts.append(KEEP_NONE)
        elif k >= numel:
            cuts.append(KEEP_ALL)
        elif search.wanted < search.ties:
            cuts.append(Cut(search.prefix, _find_last_tie(scan, keys, search, counted)))
        else:
            # All entries with this key stay.
            cuts.append(Cut(search.prefix, numel))
    return tuple(cuts)


def find_keys(
    scan: Scan,
    keys: Keys,
    targets: Sequence[tuple[int, int]],
    counted: CountedKeys | None = None,
) -> list[int]:
    """The k-th largest key of a row, for each target ``(row, k)``, k from 1; see
    ``find_largest``."""
    searches = [_Search(row, k) for row, k in targets]
    _refine(scan, keys, searches, counted)
    return [search.prefix for search in searches]


def keep_by_key(values: Tensor, keys: Tensor, cut: Cut, offset: int) -> Tensor:
    """Set all entries below the cut to zero, in place.

    Args:
        values: ``[..., m]``, a chunk.
        keys: ``[m]``, of the same chunk.
        cut: from ``find_largest``.
        offset: index of the chunk's first entry.
    """
    if cut == KEEP_ALL:
        return values
    if cut == KEEP_NONE:
        return values.zero_()
    index = torch.arange(offset, offset + keys.numel(), device=keys.device)
    stays = (keys > cut.key) | ((keys == cut.key) & (index <= cut.last))
    return values.masked_fill_(~stays, 0.0)


def magnitude_keys(values: Tensor) -> Tensor:
    """Integers that order like the magnitudes: the bits of ``|values|``."""
    return values.abs().view(key_dtype(values.dtype))


def magnitude(key: int, dtype: torch.dtype) -> float:
    """The number whose key this is."""
    return float(torch.tensor(key, dtype=key_dtype(dtype)).view(dtype))


def signed_keys(values: Tensor) -> Tensor:
    """Integers, not negative, that order like the numbers but for the last bit."""
    bits = values.view(key_dtype(values.dtype))
    # Those of negative numbers order the other way round.
    ordered = torch.where(bits < 0, bits.bitwise_not(), bits ^ torch.iinfo(bits.dtype).min)
    return (ordered >> 1) & torch.iinfo(bits.dtype).max


def number(key: int, dtype: torch.dtype) -> float:
    """A number with this key, of ``signed_keys``."""
    width = torch.iinfo(key_dtype(dtype)).bits
    is_negative = key < 1 << (width - 2)
    # Half of all keys are those of negative numbers.
    bits = (1 << (width - 1)) - 1 - 2 * key if is_negative else 2 * key - (1 << (width - 1))
    size = magnitude(bits, dtype)
    return -size if is_negative else size


def key_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integers that are as wide as these floats."""
    return torch.int32 if dtype == torch.float32 else torch.int64


def _refine(
    scan: Scan, keys: Keys, searches: Sequence[_Search], counted: CountedKeys | None
) -> None:
    """Find the searches' keys, a digit more with each pass over the tensor."""
    # Position of the lowest digit that is known; None before the first pass.
    shift: int | None = None
    while searches and shift != 0:
        # Searches with one prefix share a histogram.
        prefixes = sorted({(s.row, s.prefix) for s in searches})
        counts = _count(scan, keys, prefixes, shift, counted)
        shift = (counts.bits if shift is None else shift) - DIGIT_BITS
        for search in searches:
            which = prefixes.index((search.row, search.prefix))
            bins = counts.histogram[which]
            digit, above = _find_digit(bins, search.wanted)
            # Those in higher bins stay anyway: the place among the keys of this bin.
            search.wanted -= above
            search.prefix = (search.prefix << DIGIT_BITS) | digit
            search.ties = int(bins[digit])
            index = which * bins.size + digit
            search.places = [(_count_at(part, -1), _count_at(part, index)) for part in counts.parts]


class _Counts(NamedTuple):
    """What one pass counts."""

    histogram: Array
    """``[prefixes, bins]`` int64, of the digit after the prefix."""
    bits: int
    """How many a key has."""
    parts: Sequence[Array]
    """The same of stretches of the tensor, one after the other, where the digit is the lowest: see
    ``counting.not_empty``."""


def _count(
    scan: Scan,
    keys: Keys,
    prefixes: Sequence[tuple[int, int]],
    shift: int | None,
    counted: CountedKeys | None,
) -> _Counts:
    """Count the digit after the prefix, for pairs of row and prefix.

    ``shift`` is the position of the prefix in the key; None counts the highest digit.
    """
    bits = 0
    # The highest bit of a key is 0, so the first digit has one bit less.
    bins = 2**DIGIT_BITS if shift is not None else 2 ** (DIGIT_BITS - 1)
    is_lowest = shift == DIGIT_BITS

    def look(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        nonlocal bits
        counts = []
        row_keys: Tensor | None = None
        for (row, prefix), following in zip(prefixes, [*prefixes[1:], None], strict=True):
            if row_keys is None:
                row_keys = keys(base, sources, row, offset)
            # Overwritten below: a copy where the next prefix is of the same row.
            digits = row_keys
            if following is not None and following[0] == row:
                digits = row_keys.clone()
            else:
                row_keys = None
            bits = 8 * digits.element_size()
            if shift is None:
                # The highest digit of each key.
                digits >>= bits - DIGIT_BITS
            else:
                # With the prefix taken off, only keys that have it are below 2**shift; the others
                # go to bins beyond the last, spread out since counting one bin is slow.
                digits ^= prefix << shift
                others = torch.bitwise_right_shift(digits, bits - DIGIT_BITS).add_(bins)
                # The digit after the prefix; of other keys, what is at least ``bins``.
                digits >>= shift - DIGIT_BITS
                torch.minimum(digits, others, out=digits)
            counts.append(torch.bincount(digits, minlength=bins)[:bins])
        stacked = torch.stack(counts)
        # Whatever is longer than this chunk's other values keeps a lane's memory in pieces.
        return torch.nn.functional.pad(stacked, (1, 0), value=sources.shape[1])

    total = np.zeros((len(prefixes), bins), np.int64)
    digits = [(row, -1 if shift is None else prefix) for row, prefix in prefixes]
    counter = DigitCounter(counted or Magnitudes(), digits, bins)
    parts: list[Array] = []
    held = 0
    for counts in scan(look, fused=counter if counted else None):
        if not isinstance(counts, np.ndarray):
            total += counts[:, 1:].numpy()
            if is_lowest:
                parts.append(not_empty(counts[:, 1:].numpy(), int(counts[0, 0])))
        elif is_lowest:
            total.reshape(-1)[counts[0, 1:]] += counts[1, 1:]
            parts.append(counts.copy())
        if is_lowest:
            held += parts[-1].shape[1]
            if held > MOST_COUNTS:
                parts = _within(MOST_COUNTS, parts)
                held = _counts_of(parts)
    return _Counts(total + counter.total(), bits or MAGNITUDE_BITS, parts)


def _within(most: int, parts: list[Array]) -> list[Array]:
    """The parts, or longer ones, if they have more than ``most`` counts together."""
    while len(parts) > 1 and _counts_of(parts) > most:
        parts = [_joined(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts


def _counts_of(parts: Sequence[Array]) -> int:
    """Counts of all parts together."""
    return sum(part.shape[1] for part in parts)


def _joined(parts: Sequence[Array]) -> Array:
    """The counts of stretches that follow each other, as of one."""
    indices, counts = np.concatenate(parts, axis=1)
    distinct, inverse = np.unique(indices, return_inverse=True)
    sums = np.zeros_like(distinct)
    np.add.at(sums, inverse, counts)
    return np.stack([distinct, sums])


def _count_at(part: Array, index: int) -> int:
    """The count at this index of a part."""
    place = int(np.searchsorted(part[0], index))
    is_there = place < part.shape[1] and part[0, place] == index
    return int(part[1, place]) if is_there else 0


def _find_digit(histogram: Array, k: int) -> tuple[int, int]:
    """The bin of the k-th largest (k from 1), and how many lie in the bins above it."""
    # How many keys lie in the first 1, 2, 3... bins from the top.
    from_top = histogram[::-1].cumsum()
    # The first bin with which they are k or more.
    position = int(np.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return histogram.size - 1 - position, above


def _find_last_tie(scan: Scan, keys: Keys, search: _Search, counted: CountedKeys | None) -> int:
    """Index of the ``wanted``-th entry whose key is the one found."""

    def look(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        ties = keys(base, sources, search.row, offset) == search.prefix
        return ties.nonzero()[:, 0] + offset

    def look_at_bits(chunk: Bits) -> Array | None:
        return counted.equal_to(chunk, search.row, search.prefix) if counted else None

    # The stretch of the tensor in which it lies, and its place among the ties there.
    left, start, stop = search.wanted, 0, 0
    for size, ties in search.places:
        start, stop = stop, stop + size
        if left <= ties:
            break
        left -= ties
    for indices in map(np.asarray, scan(look, start, stop, fused=look_at_bits)):
        if left <= indices.size:
            return int(indices[left - 1])
        left -= indices.size
    raise AssertionError("the tensor has changed between two passes")
