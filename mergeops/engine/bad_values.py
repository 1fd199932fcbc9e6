"""Values that a merge refuses, and where they are in a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mergeops.lazy_torch import torch


class BadInputError(Exception):
    """A chunk that cannot be merged; carries the position of the part that is to blame."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class NonFiniteInputError(BadInputError):
    """An input's chunk holds NaN or infinity."""


class DifferentValuesError(BadInputError):
    """Inputs disagree on a tensor of whole numbers."""


class NonFiniteResultError(Exception):
    """A merged chunk does not fit the format that it is saved in."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(index, value)
        self.index = index
        self.value = value


def check_result(merged: torch.Tensor, rounded: torch.Tensor, start: int) -> None:
    """Refuse what the format of the result cannot hold.

    Args:
        merged: ``[m]`` in the compute dtype.
        rounded: the same in the format that is saved.
        start: index of the first in the tensor.

    Raises:
        NonFiniteResultError: with the index of the first.
    """
    if math.isfinite(rounded.sum(dtype=torch.float32).item()):
        return
    bad = (~rounded.isfinite()).nonzero()[:, 0]
    if bad.numel():
        raise NonFiniteResultError(start + int(bad[0]), float(merged[bad[0]]))


def unravel(index: int, shape: Iterable[int]) -> list[int]:
    """Position in a flattened tensor -> position in the tensor."""
    position: list[int] = []
    for size in reversed(tuple(shape)):
        index, place = divmod(index, size)
        position.insert(0, place)
    return position
