"""A checkpoint whose tensors are asked for by other names than they have on disk."""

from __future__ import annotations

from collections.abc import Mapping

from mergeops.checkpoint.reader import Bytes, TensorReader


class RenamedReader:
    """Reads an input by new names.

    Args:
        own: the input.
        names: new name -> name on disk; tensors that are not in it keep theirs.
    """

    def __init__(self, own: TensorReader, names: Mapping[str, str]) -> None:
        self._own = own
        self._names = names

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``."""
        return self._own.read(self._names.get(name, name), start, stop, staging)

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``."""
        self._own.prefetch(self._names.get(name, name), start, stop)

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        self._own.check_unchanged()

    def close(self) -> None:
        """See ``TensorReader``."""
        self._own.close()
