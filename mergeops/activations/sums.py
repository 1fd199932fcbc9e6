"""A safetensors file whose numbers are added to where they lie."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mergeops.checkpoint import encode_header, lacking, sync_file
from mergeops.errors import MergeError
from mergeops.lazy_torch import Tensor, torch

ITEM = 8
"""Bytes of a float64."""


class Sums:
    """A new file of float64, all zero at first.

    It is mapped into memory: what was changed goes to the disk as the system finds it best, and is
    no memory of the process's own.

    Args:
        file: is made.
        shapes: of its tensors.

    Raises:
        MergeError: the disk has not the room.
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        header = encode_header({name: ("F64", tuple(shape)) for name, shape in shapes.items()})
        needed = len(header) + ITEM * sum(map(math.prod, shapes.values()))
        free = shutil.disk_usage(file.parent).free
        if needed > free:
            raise MergeError(
                f"{file.parent.parent}: what is measured takes {lacking(needed, free)} are free; "
                "make room, or set output.dir to another disk"
            )
        with open(file, "wb") as opened:
            opened.write(header)
            opened.flush()
            # Reserved, since nobody could be told later that the disk is full.
            os.posix_fallocate(opened.fileno(), 0, needed)
        self._file = file
        self._of: dict[str, Tensor] = {}
        at = len(header)
        for name, shape in shapes.items():
            numbers = np.memmap(file, np.float64, mode="r+", offset=at, shape=tuple(shape))
            self._of[name] = torch.from_numpy(numbers)
            at += numbers.nbytes

    def add(self, name: str, numbers: Tensor) -> None:
        """Add numbers of the tensor's shape, of any device."""
        self._of[name] += numbers.to("cpu", torch.float64)

    def __enter__(self) -> Sums:
        return self

    def __exit__(self, *_: object) -> None:
        self._of.clear()
        sync_file(self._file)
