"""A checkpoint whose tensors are asked for by other names than they have on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergeops.checkpoint.reader import Bytes, TensorReader


@dataclass(frozen=True)
class TensorCut:
    """A range of a tensor on disk, which is a tensor of its own in the result."""

    tensor: str
    start: int
    """Its first element there."""


class RenamedReader:
    """Reads an input by new names.

    Args:
        own: the input.
        names: new name -> name on disk; tensors that are not in it keep theirs.
        cuts: new name -> the range on disk that it is.
    """

    def __init__(
        self,
        own: TensorReader,
        names: Mapping[str, str],
        cuts: Mapping[str, TensorCut] | None = None,
    ) -> None:
        self._own = own
        self._names = names
        self._cuts = cuts or {}

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``."""
        return self._own.read(*self._place(name, start, stop), staging)

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``."""
        self._own.prefetch(*self._place(name, start, stop))

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        self._own.check_unchanged()

    def close(self) -> None:
        """See ``TensorReader``."""
        self._own.close()

    def _place(self, name: str, start: int, stop: int) -> tuple[str, int, int]:
        """The tensor on disk, and the range of it."""
        if (cut := self._cuts.get(name)) is not None:
            return cut.tensor, cut.start + start, cut.start + stop
        return self._names.get(name, name), start, stop
