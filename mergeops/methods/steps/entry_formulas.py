"""Formulas of methods whose arithmetic is their own, entry by entry; see ``fused``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergeops.kernels import WIDTH, loaded
from mergeops.methods.steps.fused import Array, Bits, bits_of, scratch_rows


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
    """``base`` and the mean, by weight, of the changes with the sign of their sum, in float64."""

    weights: Sequence[float]

    def merge(self, bits: Bits, row_length: int, out: Array, dtype: str) -> bool:
        """See ``Formula.merge``."""
        weights = np.array(self.weights, np.float64)
        sums = np.empty((3, WIDTH))
        return _merge("elect_in_double", bits, out, dtype, weights, more=(sums,))


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
