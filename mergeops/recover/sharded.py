"""Tensors whose elements lie in pieces, in several files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergeops.checkpoint import FileStamp, StoredTensor, item_size
from mergeops.errors import SourceError


@dataclass(frozen=True)
class Place:
    """Where the elements of a piece lie in a file."""

    file: str
    """Below the directory."""
    start: int
    """Byte of the first element."""
    strides: tuple[int, ...] | None = None
    """Elements from one index to the next, an axis each; None where they lie row by row."""


@dataclass(frozen=True)
class Payload:
    """A file of its own inside another one, in which a piece lies."""

    file: str
    start: int
    size: int


@dataclass(frozen=True)
class RowsOf:
    """Some rows of a piece, at one distance from each other."""

    place: Place | Payload
    """Where the whole piece lies."""
    shape: tuple[int, ...]
    """Of the whole piece."""
    first: int
    step: int


@dataclass(frozen=True)
class ShardBox:
    """A box of a tensor."""

    offset: tuple[int, ...]
    """The first element."""
    shape: tuple[int, ...]
    place: Place | Payload | RowsOf


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor that its pieces make up."""

    name: str
    dtype: str
    """safetensors name."""
    shape: tuple[int, ...]
    pieces: tuple[ShardBox, ...]
    """Boxes of ``shape``, or of the tensor laid out flat."""
    is_flat: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape that the pieces are boxes of; at least one axis."""
        return (self.numel,) if self.is_flat or not self.shape else self.shape


@dataclass(frozen=True)
class ShardedModel:
    """What a sharded training left: its tensors, wherever their pieces are."""

    path: Path
    tensors: Mapping[str, ShardedTensor]
    stamps: Mapping[str, FileStamp]
    """File below the directory -> stamp, for every file that holds a piece."""
    unpack: Callable[[Path, Payload, str, tuple[int, ...]], Place] | None = None
    """Finds the elements of a payload, given the directory, the dtype and the shape."""

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """The tensors as headers describe them, as if they lay one after the other."""
        described, start = {}, 0
        for name, tensor in self.tensors.items():
            stop = start + tensor.numel * item_size(tensor.dtype)
            described[name] = StoredTensor(name, tensor.dtype, tensor.shape, "", start, stop)
            start = stop
        return described

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(tensor.numel * item_size(tensor.dtype) for tensor in self.tensors.values())


def check_covered(path: Path, tensor: ShardedTensor) -> None:
    """Refuse a tensor whose pieces leave a gap or overlap.

    Raises:
        SourceError: says which tensor, and how much is there.
    """
    grid = tensor.grid
    boxes = [piece for piece in tensor.pieces if math.prod(piece.shape)]
    for piece in boxes:
        ends = [begin + size for begin, size in zip(piece.offset, piece.shape, strict=False)]
        if (
            len(piece.offset) != len(grid)
            or len(piece.shape) != len(grid)
            or any(
                begin < 0 or size < 0 or end > most
                for begin, size, end, most in zip(
                    piece.offset, piece.shape, ends, grid, strict=True
                )
            )
        ):
            raise SourceError(
                f"{path}: tensor {tensor.name} of shape {list(tensor.shape)} has a piece of shape "
                f"{list(piece.shape)} at {list(piece.offset)}, outside it"
            )
    there = sum(math.prod(piece.shape) for piece in boxes)
    if there < tensor.numel:
        raise SourceError(
            f"{path}: of tensor {tensor.name} only {there} of {tensor.numel} elements are there: "
            "the files of a process are missing; copy those of every node into it"
        )
    if there > tensor.numel or _overlap(boxes):
        raise SourceError(f"{path}: pieces of tensor {tensor.name} lie over each other")


def _overlap(boxes: Sequence[ShardBox]) -> bool:
    ordered = sorted(boxes, key=lambda piece: piece.offset)
    begins = np.array([piece.offset for piece in ordered], np.int64)
    ends = begins + np.array([piece.shape for piece in ordered], np.int64)
    for i in range(len(ordered) - 1):
        # Those that begin behind its end along the first axis cannot touch it.
        stop = i + 1 + int(np.searchsorted(begins[i + 1 :, 0], ends[i, 0], side="left"))
        meets = (begins[i + 1 : stop] < ends[i]) & (ends[i + 1 : stop] > begins[i])
        if meets.all(axis=1).any():
            return True
    return False
