"""Sums over entries that norms, cosines, distances and sign conflicts are made from.

Sums of two parts add up to the sums of the whole, so statistics of a tensor, a layer and a model
come from one pass. All in float64; counts are exact below 2**53.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from mergeops.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over the entries of n sources and their reference.

    The reference is the base; without one it is the first source, so that distances of models
    that are close to each other stay exact.
    """

    has_base: bool
    entries: int
    reference_square: float
    """Sum of the squares of the reference."""
    gram: Tensor
    """``[n, n]`` float64: sums of products of the differences to the reference."""
    to_reference: Tensor
    """``[n]`` float64: sums of products of the differences and the reference."""
    both: Tensor
    """``[n, n]`` float64: entries that both sources changed."""
    opposed: Tensor
    """``[n, n]`` float64: of these, those changed in opposite directions."""
    contested: int
    """Entries that at least two sources changed."""
    in_conflict: int
    """Of these, those that not all changed in one direction."""

    @classmethod
    def of(cls, reference: Tensor, sources: Tensor, *, has_base: bool) -> Moments:
        """The sums of some entries.

        Args:
            reference: ``[m]`` float64.
            sources: ``[n, m]`` float64.
            has_base: whether the reference is a base.
        """
        differences = sources - reference
        signs = torch.sign(differences)
        moved = signs.abs()
        both = moved @ moved.T
        # Same direction counts 1 and opposite -1, so the sum is both - 2 opposed.
        opposed = (both - signs @ signs.T) / 2
        # Per entry: how many sources changed it, and up against down.
        movers, balance = moved.sum(0), signs.sum(0).abs()
        contested = movers >= 2
        return cls(
            has_base=has_base,
            entries=reference.numel(),
            reference_square=float(reference @ reference),
            gram=differences @ differences.T,
            to_reference=differences @ reference,
            both=both,
            opposed=opposed,
            contested=int(contested.sum()),
            in_conflict=int((contested & (balance < movers)).sum()),
        )

    def __add__(self, other: Moments) -> Moments:
        sums = [f.name for f in fields(self) if f.name != "has_base"]
        added = {name: getattr(self, name) + getattr(other, name) for name in sums}
        return replace(self, **added)

    def is_finite(self, i: int) -> bool:
        """Whether the sums say that a source's entries are all finite, or (-1) those of the base.

        What is not finite in the reference makes every sum so; ask for it first.
        """
        return math.isfinite(self.reference_square if i < 0 else float(self.gram[i, i]))

    def norm(self, i: int) -> float | None:
        """Euclidean norm of a task vector; without a base, of the weights."""
        return _finite(math.sqrt(max(self._product(i, i), 0.0)))

    def relative_norm(self, i: int) -> float | None:
        """Norm of a task vector, in norms of the base; None without a base."""
        if not self.has_base or self.reference_square == 0:
            return None
        return _finite(math.sqrt(float(self.gram[i, i]) / self.reference_square))

    def changed(self, i: int) -> float | None:
        """Share of the entries that a source changed; None without a base."""
        return float(self.both[i, i]) / self.entries if self.has_base and self.entries else None

    def cosine(self, i: int, j: int) -> float | None:
        """Cosine of two task vectors; without a base, of the weights. None where one is zero."""
        # <a, b> / (|a| |b|)
        size = math.sqrt(max(self._product(i, i), 0.0) * max(self._product(j, j), 0.0))
        return _finite(self._product(i, j) / size) if size else None

    def distance(self, i: int, j: int) -> float | None:
        """Euclidean distance of two sources."""
        # |a - b|^2 = |a|^2 + |b|^2 - 2 <a, b>; the reference cancels.
        square = self.gram[i, i] + self.gram[j, j] - 2 * self.gram[i, j]
        return _finite(math.sqrt(max(float(square), 0.0)))

    def sign_conflict(self, i: int, j: int) -> float | None:
        """Share of the entries that both changed which they changed in opposite directions; None
        without a base, or where they changed no entry in common."""
        if not self.has_base or not self.both[i, j]:
            return None
        return float(self.opposed[i, j] / self.both[i, j])

    def any_sign_conflict(self) -> float | None:
        """Share of the entries that several sources changed which they do not all change in one
        direction; None without a base or such entries."""
        if not self.has_base or not self.contested:
            return None
        return self.in_conflict / self.contested

    def _product(self, i: int, j: int) -> float:
        """Inner product of two task vectors; without a base, of the weights."""
        product = self.gram[i, j]
        if not self.has_base:
            # <r + a, r + b> = <a, b> + <a, r> + <b, r> + |r|^2, with r the reference.
            product = product + self.to_reference[i] + self.to_reference[j] + self.reference_square
        return float(product)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
