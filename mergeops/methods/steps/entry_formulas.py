"""Formulas of methods whose arithmetic is their own, entry by entry; see ``fused``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergeops.kernels import WIDTH, bits_of, loaded
from mergeops.lazy_torch import torch
from mergeops.methods.steps.counting import Magnitudes
from mergeops.methods.steps.fused import Array, Bits, scratch_rows
from mergeops.methods.steps.selection import Cut
from mergeops.methods.steps.varying import keep_varying

_AT_A_TIME = 1 << 14
"""Entries of which exponentials and logarithms are taken, where rows are shorter: what there is of
them stays in a processor's second cache."""


@dataclass(frozen=True)
class Clamped:
    """``base`` and the change from it, which is at most ``t``."""

    t: float
    """Above zero."""

    def merge(self, bits: Bits, row_length: int, out: Array, dtype: str) -> bool:
        """See ``Formula.merge``."""
        return _merge("swap_near", bits, out, dtype, np.float32(self.t))


@dataclass(frozen=True)
class Reinforced:
    """``base`` and the mean of what changed it; what one source alone changed times its factor."""

    epsilon: float
    factors: Sequence[float]

    def merge(self, bits: Bits, row_length: int, out: Array, dtype: str) -> bool:
        """See ``Formula.merge``."""
        factors = np.array(self.factors, np.float32)
        return _merge("reinforce", bits, out, dtype, np.float32(self.epsilon), factors)


@dataclass(frozen=True)
class Elected:
    """``base`` and the mean, by weight, of the changes with the sign of their sum, in float64; of
    the entries whose variance over the sources is not below ``cut``."""

    weights: Sequence[float]
    cut: Cut

    def merge(self, bits: Bits, row_length: int, out: Array, dtype: str) -> bool:
        """See ``Formula.merge``."""
        kept = keep_varying(bits, self.cut)
        if kept is None:
            return False
        weights = np.array(self.weights, np.float64)
        sums = np.empty((3, WIDTH))
        return _merge("elect_in_double", kept, out, dtype, weights, more=(sums,))


@dataclass(frozen=True)
class Important:
    """The source where a change is important, and the base elsewhere."""

    changes: Magnitudes
    """Importance: of changes, times the divergences of their rows."""
    threshold: float

    def merge(self, bits: Bits, row_length: int, out: Array, dtype: str) -> bool:
        """See ``Formula.merge``."""
        of_chunk = self.changes.of_chunk(bits)
        return _merge("take_important", bits, out, dtype, *of_chunk, self.threshold)


def row_divergences(bits: Bits, row_length: int, softening: float) -> Array | None:
    """Divergence ``[rows]`` float32 of the source's softmax from the base's in each row, as of
    ``arcee_fusion``; None for an input that is not finite."""
    found = np.empty(bits.m // row_length, np.float32)
    group = max(_AT_A_TIME // row_length, 1)
    buffers = np.empty((2, 2 * min(group * row_length, bits.m)))
    rows, terms = scratch_rows(2), np.empty(row_length)
    for first in range(0, found.size, group):
        of_rows = found[first : first + group]
        powers, logs = (flat[: 2 * of_rows.size * row_length] for flat in buffers)
        softmax = powers.reshape(2, -1)
        which = first * row_length, row_length
        if not loaded("exponents")(*bits.arguments[:3], *which, rows, softmax):
            return None
        # torch's own: the last bits of an exponential are its library's.
        torch.from_numpy(powers).exp_()
        loaded("soften")(row_length, softening, terms, softmax)
        torch.log(torch.from_numpy(powers), out=torch.from_numpy(logs))
        loaded("diverge")(row_length, softmax, logs.reshape(2, -1), terms, of_rows)
    return found


def overlap(bits: Bits, epsilon: float) -> Array | None:
    """Entries ``[2, n]`` that each source changed together with others, and alone; None for an
    input that is not finite."""
    counts = np.empty((2, bits.parts - 1), np.int64)
    scratch = scratch_rows(bits.parts), scratch_rows(1)
    finite = loaded("overlaps")(*bits.arguments, np.float32(epsilon), *counts, *scratch)
    return counts if finite else None


def _merge(
    kernel: str, bits: Bits, out: Array, dtype: str, *arguments: Any, more: tuple[Array, ...] = ()
) -> bool:
    saved = bits_of(out, dtype)
    if saved is None:
        return False
    scratch = scratch_rows(bits.parts), scratch_rows(2)
    return bool(loaded(kernel)(*bits.arguments, *arguments, *saved, *scratch, *more))
