"""Methods as formulas that one compiled kernel computes on the CPU, with the bits of the tensors'
way.

A method whose arithmetic is "sparsify each task vector, add up or vote, go from the base" says so
by a ``Formula``. The kernels are an optional way to the same result: where numba is missing, inputs
are not finite, or the arithmetic is not float32 on a CPU, the method's own function is called.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from mergeops.kernels import BLOCK, COLUMNS, NOT_FINITE, STRIPS, TOO_MANY, WIDTH, bits_of, loaded
from mergeops.methods.registry import MethodView
from mergeops.methods.steps.randomness import STEPS, limit

Array = npt.NDArray[Any]

_NO_WINDOWS = np.empty((0, 4), np.int64)
_NO_CHANCES, _NO_STAYS = np.empty((0, 0), np.int32), np.empty((0, 0), np.uint8)
_SHORT = 128
"""Rows with fewer entries are sorted rather than counted."""
_SORTED, _MOST_COLUMN_BITS = 1 << 16, 16
"""Entries that are sorted at a time, where rows are shorter; bits of 32 for the column."""
_MOST_REMEMBERED = 1 << 26
"""Bytes of what is found of a tensor in one pass and used in the next."""


@functools.cache
def kernels() -> Future[bool]:
    """Loads the kernels, or has them compiled once for a machine, while the caller goes on.

    The result says whether they can be used: they can be loaded or compiled here, and work.
    """
    loading: Future[bool] = Future()
    # Not of a pool: such a thread does not learn that the process wants to end.
    threading.Thread(target=lambda: loading.set_result(_load()), name="kernels").start()
    return loading


def _load() -> bool:
    try:
        # What loads but does not run here must not be found out by a merge.
        bits, out = np.ones(1, np.float32).view(np.uint32), np.zeros(1, np.float32)
        one = Bits(np.empty(0, np.uint16), bits, row=1, parts=1, m=1, has_base=False, offset=0)
        if not Formula([1.0]).merge(one, 1, out.view(np.uint8), "F32") or out[0] != 1.0:
            raise ArithmeticError(f"a compiled kernel gives {out[0]} for 1.0")
    # Whatever is wrong with numba on a machine, a merge can do without it.
    except Exception as error:
        if not threading.main_thread().is_alive():
            return False
        logging.getLogger(__name__).warning("merging without compiled kernels: %s", error)
        return False
    return True


def scratch_rows(n: int, width: int = WIDTH) -> Array:
    """Scratch of a kernel."""
    return np.empty((n, width), np.uint32)


class Bits(NamedTuple):
    """A chunk of the inputs, as bits."""

    low: Array
    """uint16 of bfloat16, the base's row first, where there is one."""
    high: Array
    """uint32 of float32; either of the two is empty."""
    row: int
    """From the begin of one input's row to the next."""
    parts: int
    m: int
    """Entries of the chunk."""
    has_base: bool
    offset: int
    """Index of the first entry in the tensor."""

    @property
    def arguments(self) -> tuple[Array, Array, int, int]:
        """The kernels' first arguments."""
        return self.low, self.high, self.row, self.m


@dataclass(frozen=True)
class Drops:
    """Entries dropped at random."""

    densities: Sequence[float]
    """Each source's probability to keep an entry."""
    keys: Sequence[int]
    """Each source's random key."""
    rescale: bool
    """Divide what stays by its probability."""
    epsilons: Sequence[float] | None = None
    """How far the probability follows the rank in the row: see ``ranks.drop_by_rank``."""
    _remembered: dict[tuple[int, int], Array] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(cls, p: Any, at: MethodView) -> Self:
        """What a method with these parameters drops; where norms are matched, nothing is divided.

        Args:
            p: with ``rescale`` and ``match_norm``.
            at: gives densities, keys, and epsilons where the method has them.
        """
        rescale = p.rescale and not p.match_norm
        return cls(at.per_source["density"], at.keys, rescale, at.per_source.get("epsilon"))

    def remember(self, bits: Bits, stays: Array) -> None:
        """Keep for the next pass what ``_stays`` found in a chunk, as long as there is room."""
        packed = np.packbits(stays, axis=1)
        if (len(self._remembered) + 1) * packed.nbytes <= _MOST_REMEMBERED:
            self._remembered[bits.offset, bits.m] = packed

    def recall(self, bits: Bits) -> Array | None:
        """What was kept for a chunk, once."""
        packed = self._remembered.pop((bits.offset, bits.m), None)
        return None if packed is None else np.unpackbits(packed, axis=1, count=bits.m)


class Matched(NamedTuple):
    """How entries are dropped from task vectors whose norms are kept."""

    factors: tuple[float, ...] | None
    """None where norms are not matched."""
    drops: Drops


@dataclass(frozen=True)
class Formula:
    """``base + scale * f(weights, factors * sparse(sources - base))``; without a base, on the
    sources themselves."""

    weights: Sequence[float]
    scale: float = 1.0
    factors: Sequence[float] | None = None
    """On each sparse task vector."""
    windows: Sequence[tuple[Sequence[int], Sequence[int]]] | None = None
    """Each source's outer and inner cut: see ``breadcrumbs.Window``."""
    drops: Drops | None = None
    vote: bool = False
    """Elect a sign (``consensus.elect_and_average``); else add up."""
    normalize: bool = False
    """Of the vote: divide by the voters' weight."""

    @functools.cached_property
    def _windows(self) -> Array:
        if self.windows is None:
            return _NO_WINDOWS
        # KEEP_NONE's key is beyond any; int64 must still hold one more.
        cuts = [[*outer, *inner] for outer, inner in self.windows]
        return np.minimum(np.array(cuts, dtype=np.int64), 2**62)

    @functools.cached_property
    def _limits(self) -> Array:
        if self.drops is None:
            return np.full(len(self.weights), -1, np.int64)
        return np.array(
            [-1 if d == 1.0 else limit(d) for d in self.drops.densities],
            dtype=np.int64,
        )

    @functools.cached_property
    def _keys(self) -> Array:
        return np.array(self.drops.keys if self.drops else [0] * len(self.weights), np.uint64)

    @functools.cached_property
    def _factors(self) -> Array:
        factors = np.array(self.factors or [1.0] * len(self.weights), np.float32)
        if self.drops and self.drops.rescale and self.drops.epsilons is None:
            for i, density in enumerate(self.drops.densities):
                if 0.0 < density < 1.0:
                    factors[i] = 1.0 / density
        return factors

    def _sparsify(
        self, bits: Bits, row_length: int, *, once_more: bool = False
    ) -> tuple[Any, ...] | None:
        """The kernels' arguments; ``once_more`` says that the same chunk will come again."""
        chances, stays = _NO_CHANCES, _NO_STAYS
        if self.drops is not None and self.drops.epsilons is not None:
            if self.drops.rescale:
                # What stays is divided by its chance, so each entry's chance is wanted.
                finite_chances = _chances(bits, self.drops, self.drops.epsilons, row_length)
                if finite_chances is None:
                    return None
                chances = finite_chances
            else:
                finite_stays = self.drops.recall(bits)
                if finite_stays is None:
                    finite_stays = _stays(bits, self.drops, self.drops.epsilons, row_length)
                if finite_stays is None:
                    return None
                stays = finite_stays
                if once_more:
                    self.drops.remember(bits, stays)
        random = np.empty(WIDTH // 2 + 1, np.uint64)
        return bits.offset, self._windows, self._limits, self._keys, chances, stays, random

    def merge(self, bits: Bits, row_length: int, out: Array, dtype: str) -> bool:
        """Merge a chunk into ``out``, its bytes in this format; False where an input or a result is
        not finite."""
        saved = bits_of(out, dtype)
        sparse = self._sparsify(bits, row_length)
        if saved is None or sparse is None:
            return False
        return bool(
            loaded("combine")(
                *bits.arguments,
                bits.has_base,
                *sparse,
                self._factors,
                np.array(self.weights, np.float32),
                self.vote,
                self.normalize,
                np.float32(self.scale),
                *saved,
                scratch_rows(len(self.weights) + bits.has_base),
                scratch_rows(3),
            )
        )

    def norms(self, bits: Bits, row_length: int, length: int) -> Array | None:
        """Block sums ``[2n, pieces]`` of the magnitudes before and after sparsifying."""
        sparse = self._sparsify(bits, row_length, once_more=True)
        if sparse is None:
            return None
        n = len(self.weights)
        sums = np.empty((2 * n, -(-bits.m // length)))
        scratch = scratch_rows(n + 1, length), np.empty(length)
        finite = loaded("norms")(*bits.arguments, *sparse, length, sums, *scratch)
        return sums if finite else None


def gram(bits: Bits) -> Array | None:
    """Block sums of products: see ``reduction.gram``."""
    n = bits.parts - bits.has_base
    sums = np.empty((n * (n + 1) // 2, -(-bits.m // BLOCK)))
    scratch = np.empty(4 * STRIPS * COLUMNS, np.float32), np.empty(6 * BLOCK // STRIPS)
    finite = loaded("products")(*bits.arguments, n, bits.has_base, sums, *scratch)
    return sums if finite else None


def gram_diagonal(bits: Bits) -> Array | None:
    """Block sums ``[n, blocks]`` of the squares: those of ``gram`` of each vector with itself."""
    sums, n = gram(bits), bits.parts - bits.has_base
    return None if sums is None else sums[[i * n - i * (i - 1) // 2 for i in range(n)]]


def _chances(bits: Bits, drops: Drops, epsilons: Sequence[float], row_length: int) -> Array | None:
    """Each entry's own chance ``[n, m]`` int32, in steps; None for an input not finite."""
    chances = np.empty((len(drops.densities), bits.m), np.int32)
    for i, (density, epsilon) in enumerate(zip(drops.densities, epsilons, strict=True)):
        start, step = chance_of_rank(density, epsilon, row_length)
        if density < 1.0 and not _sort_out(bits, i, row_length, start, step, chances[i]):
            return None
    return chances


def _sort_out(
    bits: Bits, source: int, row_length: int, start: float, step: float, out: Array
) -> bool:
    """One source's chances ``[m]`` into ``out``, by sorting each row; False for an input not
    finite."""
    column_bits = max((row_length - 1).bit_length(), 1)
    if column_bits <= _MOST_COLUMN_BITS:
        group = max(_SORTED // row_length, 1) * row_length
        rows, *of_group = scratch_rows(2), *np.empty((2, min(group, bits.m)), np.uint32)
        of_row = np.empty(row_length, np.uint32), np.empty(row_length, np.int32)
        for begin in range(0, bits.m, group):
            keys, packed = (of_entries[: bits.m - begin] for of_entries in of_group)
            which = begin, source, row_length, column_bits
            if not loaded("pack_short")(*bits.arguments[:3], *which, rows, keys, packed):
                return False
            # numpy sorts integers with the processor's widest registers.
            packed.reshape(-1, row_length).sort(axis=1)
            order = row_length, column_bits, start, step, *of_row
            if not loaded("chances_short")(packed, keys, *order, out[begin : begin + packed.size]):
                break
        else:
            return True
    packed = np.empty(bits.m, np.int64)
    scratch = scratch_rows(2), np.empty(WIDTH, np.uint32)
    if not loaded("pack")(*bits.arguments, source, row_length, *scratch, packed):
        return False
    packed.reshape(-1, row_length).sort(axis=1)
    loaded("chances")(packed, row_length, start, step, out)
    return True


def _stays(bits: Bits, drops: Drops, epsilons: Sequence[float], row_length: int) -> Array | None:
    """Whether each entry stays ``[n, m]`` uint8; None for an input not finite."""
    stays = np.empty((len(drops.densities), bits.m), np.uint8)
    # A bucket for about 8 entries of a row.
    buckets = 1 << min((row_length // 8).bit_length(), 12)
    rows, keys = scratch_rows(2), np.empty(max(row_length, WIDTH), np.uint32)
    places, table = np.empty(row_length, np.uint32), np.empty((3, buckets + 2), np.int32)
    bounds, taken = np.empty(buckets + 2, np.uint64), np.empty(WIDTH, np.uint64)
    random, unsure = np.empty(WIDTH // 2 + 1, np.uint64), np.empty(WIDTH, np.uint8)
    scratch = rows, keys, places, table, bounds, taken, random, unsure
    for i, (density, epsilon, key) in enumerate(
        zip(drops.densities, epsilons, drops.keys, strict=True)
    ):
        if density == 1.0:
            continue
        start, step = chance_of_rank(density, epsilon, row_length)
        state = TOO_MANY
        if row_length >= _SHORT:
            which = i, row_length, bits.offset, key, start, step
            state = loaded("decide")(*bits.arguments, *which, *scratch, stays[i])
        if state == TOO_MANY:
            chances = np.empty(bits.m, np.int32)
            if _sort_out(bits, i, row_length, start, step, chances):
                loaded("compare")(chances, bits.offset, key, random, stays[i])
                continue
            state = NOT_FINITE
        if state == NOT_FINITE:
            return None
    return stays


def chance_of_rank(density: float, epsilon: float, row_length: int) -> tuple[float, float]:
    """Chance of rank 0, and what half a rank adds, in steps of ``2**-31``."""
    epsilon = min(epsilon, density, 1.0 - density)
    # A row of one entry has rank 1 of 0 to 2: the middle.
    start = (density - epsilon) * STEPS if row_length > 1 else density * STEPS
    return start, epsilon * STEPS / max(row_length - 1, 1)
