"""The matrix of a rank that is nearest to a change, as LoRA's two factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergeops.errors import ConfigError
from mergeops.lazy_torch import Tensor, torch

HELD = 2.0**-26
"""Of the largest singular value: what is smaller is less than the rounding of float32 factors."""
ROUNDING = {"float32": 2.0**-22, "float64": 2.0**-46}
"""Of a weight's length, by what it was merged in: what is smaller may be rounding."""


@dataclass(frozen=True)
class Rank:
    """How many directions of each matrix are kept."""

    number: int | None = None
    """As many in every matrix; None takes as few in each as ``energy`` allows."""
    energy: float = 0.95
    """Share of the squared length of a matrix's change that is kept at least, without a number."""
    most: int = 256
    """At most so many, without a number."""

    @classmethod
    def parse(cls, text: str, *, energy: float = 0.95, most: int = 256) -> Rank:
        """``auto``, or a whole number of at least 1.

        Raises:
            ConfigError: it is neither, or the share or the bound is out of range.
        """
        if text == "auto":
            if not 0.0 < energy <= 1.0:
                raise ConfigError(f"--energy is {energy:g}; allowed: above 0 to 1")
            if most < 1:
                raise ConfigError(f"--max-rank is {most}; allowed: at least 1")
            return cls(None, energy, most)
        if not text.isascii() or not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"--rank is {text!r}; allowed: auto, or a whole number from 1")
        return cls(int(text))

    def of(self, values: Tensor) -> int:
        """How many of these singular values ``[k]``, the largest first, are kept; at least one."""
        if self.number is not None:
            return min(self.number, len(values))
        squares = values.square()
        kept = squares.cumsum(dim=0) / squares.sum()
        # The first place at which the share is reached.
        wanted = int((kept < self.energy * (1.0 - torch.finfo(kept.dtype).eps)).sum()) + 1
        return min(wanted, self.most, len(values))


class FactorPair(NamedTuple):
    """A change of rank r as LoRA stores it, with alpha equal to r: ``b @ a``."""

    a: Tensor
    """``[r, inputs]`` float32."""
    b: Tensor
    """``[outputs, r]`` float32."""
    length: float
    """Of the whole change: its Frobenius norm."""
    error: float
    """Of what ``b @ a``, as it is stored, differs from it."""

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.a)


def factorize(change: Tensor, rank: Rank) -> FactorPair:
    """The nearest matrix of a rank (Eckart and Young 1936, https://doi.org/10.1007/BF02288367).

    Args:
        change: ``[outputs, inputs]`` float64, not zero.
        rank: how many directions stay.
    """
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    return _pair(change, left, values, right, rank.of(values))


def factorize_whole(change: Tensor, rounding: float) -> FactorPair:
    """All directions of a change but those that rounding alone made.

    Args:
        change: ``[outputs, inputs]`` float64, longer than ``rounding``.
        rounding: singular values up to this one may be that.
    """
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    # What is longer than rounding, but nowhere in one direction, is of full rank.
    kept = int((values > max(HELD * float(values[0]), rounding)).sum()) or len(values)
    return _pair(change, left, values, right, kept)


def factorize_sum(pairs: Sequence[tuple[Tensor, Tensor]]) -> FactorPair | None:
    """The sum of products in as few directions as it has; None where it is zero.

    Args:
        pairs: each ``[outputs, r]`` and ``[r, inputs]`` float64, of any r.
    """
    if not pairs:
        return None
    b, a = torch.cat([b for b, _ in pairs], dim=1), torch.cat([a for _, a in pairs])
    from_b, rows = torch.linalg.qr(b)
    from_a, columns = torch.linalg.qr(a.T)
    # Orthogonal factors leave singular values as they are.
    left, values, right = torch.linalg.svd(rows @ columns.T, full_matrices=False)
    if not float(values[0]):
        return None
    kept = int((values > HELD * float(values[0])).sum())
    return _pair(b @ a, from_b @ left, values, right @ from_a.T, kept)


def _pair(change: Tensor, left: Tensor, values: Tensor, right: Tensor, kept: int) -> FactorPair:
    # The singular values are shared out, so that both factors are of one size.
    roots = values[:kept].sqrt()
    b = (left[:, :kept] * roots).float()
    a = (roots[:, None] * right[:kept]).float()
    error = torch.linalg.norm(change - b.double() @ a.double())
    return FactorPair(a, b, float(torch.linalg.norm(change)), float(error))
