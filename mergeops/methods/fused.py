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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mergeops.methods import BLOCK, Place
from mergeops.methods.randomness import STEPS, limit

Array = npt.NDArray[Any]

KERNEL_DTYPES = (torch.bfloat16, torch.float32)
"""What kernels read and write; other inputs are converted first."""
_NO_WINDOWS = np.empty((0, 4), np.int64)
_NO_CHANCES = np.empty((0, 0), np.int32)
_NO_LOW, _NO_HIGH = np.empty(0, np.uint16), np.empty(0, np.uint32)


@functools.cache
def kernels() -> Future[bool]:
    """Loads the kernels, or compiles them once for a machine, while the caller goes on.

    The result says whether they can be used: numba is there and works.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="kernels")
    loading = pool.submit(_load)
    pool.shutdown(wait=False)
    return loading


def _load() -> bool:
    try:
        import mergeops.kernels.combine
        import mergeops.kernels.ranks
        import mergeops.kernels.scans  # noqa: F401

        # What loads but does not run here must not be found out by a merge.
        bits, out = np.ones(1, np.float32).view(np.uint32), torch.zeros(1)
        one = Bits(_NO_LOW, bits, row=1, parts=1, m=1, has_base=False, offset=0)
        if not Formula([1.0]).merge(one, 1, out) or out.item() != 1.0:
            raise ArithmeticError(f"a compiled kernel gives {out.item()} for 1.0")
    # Whatever is wrong with numba on a machine, a merge can do without it.
    except Exception as error:
        logging.getLogger(__name__).warning("merging without compiled kernels: %s", error)
        return False
    return True


def bits_of(rows: Tensor) -> tuple[Array, Array] | None:
    """Rows on the CPU as one flat array of bits, ``Bits.low`` and ``Bits.high``, or None where they
    have another format."""
    if rows.dtype == torch.bfloat16:
        return rows.view(-1).view(torch.uint16).numpy(), _NO_HIGH
    if rows.dtype == torch.float32:
        return _NO_LOW, rows.view(-1).view(torch.uint32).numpy()
    return None


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
    def place(self) -> tuple[Array, Array, int, int]:
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

    @classmethod
    def of(cls, p: Any, at: Place) -> Self:
        """What a method with these parameters drops; where norms are matched, nothing is divided.

        Args:
            p: with ``rescale`` and ``match_norm``.
            at: gives densities, keys, and epsilons where the method has them.
        """
        rescale = p.rescale and not p.match_norm
        return cls(at.per_source["density"], at.keys, rescale, at.per_source.get("epsilon"))


@dataclass(frozen=True)
class Formula:
    """``base + scale * f(weights, factors * sparse(sources - base))``; without a base, on the
    sources themselves."""

    weights: Sequence[float]
    scale: float = 1.0
    factors: Sequence[float] | None = None
    """On each sparse task vector."""
    windows: Sequence[tuple[Sequence[int], Sequence[int]]] | None = None
    """Each source's outer and inner cut: see ``trimming.Window``."""
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

    def _sparsify(self, bits: Bits, row_length: int) -> tuple[Any, ...] | None:
        chances, rescale = _NO_CHANCES, False
        if self.drops is not None and self.drops.epsilons is not None:
            found = _chances(bits, self.drops, row_length)
            if found is None:
                return None
            chances, rescale = found, self.drops.rescale
        return bits.offset, self._windows, self._limits, self._keys, chances, rescale

    def merge(self, bits: Bits, row_length: int, out: Tensor) -> bool:
        """Merge a chunk into ``out`` ``[m]``; False where an input or a result is not finite."""
        from mergeops.kernels.combine import combine

        saved = bits_of(out)
        sparse = self._sparsify(bits, row_length)
        if saved is None or sparse is None:
            return False
        return bool(
            combine(
                *bits.place,
                bits.has_base,
                *sparse,
                self._factors,
                np.array(self.weights, np.float32),
                self.vote,
                self.normalize,
                np.float32(self.scale),
                *saved,
            )
        )

    def norms(self, bits: Bits, row_length: int, length: int) -> Tensor | None:
        """Block sums ``[2n, pieces]`` of the magnitudes before and after sparsifying."""
        from mergeops.kernels.scans import norms

        sparse = self._sparsify(bits, row_length)
        if sparse is None:
            return None
        sums = np.empty((2 * len(self.weights), -(-bits.m // length)))
        return torch.from_numpy(sums) if norms(*bits.place, *sparse, length, sums) else None


def gram(bits: Bits) -> Tensor | None:
    """Block sums of products: see ``reduction.gram``."""
    from mergeops.kernels.scans import products

    n = bits.parts - bits.has_base
    sums = np.empty((n * (n + 1) // 2, -(-bits.m // BLOCK)))
    finite = products(*bits.place, bits.parts, bits.has_base, sums)
    return torch.from_numpy(sums) if finite else None


class DigitCounter:
    """Histograms of the task vectors' magnitudes, to which each thread adds on its own.

    Args:
        prefixes: k pairs (source, high digit): only magnitudes with this high digit count, by their
            low digit; -1 counts all, by their high digits.
        bins: values of a digit.
    """

    def __init__(self, prefixes: Sequence[tuple[int, int]], bins: int) -> None:
        self._rows, self._digits = np.array(prefixes, dtype=np.int64).T.copy()
        self._shape = (len(prefixes), bins)
        self._local = threading.local()
        self._counts: list[Array] = []

    def __call__(self, bits: Bits) -> Tensor | None:
        """Count a chunk; nothing to say but that it was done, or None for an input not finite."""
        from mergeops.kernels.scans import count_digits

        counts: Array | None = getattr(self._local, "counts", None)
        if counts is None:
            counts = self._local.counts = np.zeros(self._shape, np.int64)
            self._counts.append(counts)
        return (
            torch.empty(0) if count_digits(*bits.place, self._rows, self._digits, counts) else None
        )

    def total(self) -> Tensor:
        """``[k, bins]``, of all threads."""
        return torch.from_numpy(sum(self._counts, np.zeros(self._shape, np.int64)))


def count_equal(bits: Bits, wanted: Sequence[tuple[int, int]]) -> Tensor | None:
    """How many magnitudes are exactly this one ``[k]``, for k pairs (source, magnitude bits)."""
    from mergeops.kernels.scans import count_equal

    rows, keys = np.array(wanted, dtype=np.int64).T.copy()
    counts = np.zeros(len(wanted), np.int64)
    finite = count_equal(*bits.place, rows, keys, counts)
    return torch.from_numpy(counts) if finite else None


def _chances(bits: Bits, drops: Drops, row_length: int) -> Array | None:
    from mergeops.kernels.ranks import chances, pack

    assert drops.epsilons is not None
    found = np.empty((len(drops.densities), bits.m), np.int32)
    packed = np.empty(bits.m, np.int64)
    for i, (density, epsilon) in enumerate(zip(drops.densities, drops.epsilons, strict=True)):
        if density == 1.0:
            continue
        if not pack(*bits.place, i, row_length, packed):
            return None
        # numpy sorts integers with the processor's widest registers.
        packed.reshape(-1, row_length).sort(axis=1)
        start, step = chance_of_rank(density, epsilon, row_length)
        chances(packed, row_length, start, step, found[i])
    return found


def chance_of_rank(density: float, epsilon: float, row_length: int) -> tuple[float, float]:
    """Chance of rank 0, and what half a rank adds, in steps of ``2**-31``."""
    epsilon = min(epsilon, density, 1.0 - density)
    # A row of one entry has rank 1 of 0 to 2: the middle.
    start = (density - epsilon) * STEPS if row_length > 1 else density * STEPS
    return start, epsilon * STEPS / max(row_length - 1, 1)
