"""Reading tensors from their pieces, any range at a time."""

from __future__ import annotations

import bisect
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeops.checkpoint import Bytes, FileStamp, item_size, stamp
from mergeops.errors import SourceError
from mergeops.recover.sharded import (
    Payload,
    Place,
    RowsOf,
    ShardBox,
    ShardedModel,
    ShardedTensor,
)

WORDS: dict[int, npt.DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Bytes of an element -> what carries its bits through numpy."""


class ShardedReader:
    """Reads tensors from their pieces; a ``checkpoint.TensorReader``. Safe to use from threads.

    Raises:
        SourceError: a file is missing or not the one that was looked at.
    """

    def __init__(self, shards: ShardedModel, stamps: Mapping[str, FileStamp] | None = None) -> None:
        self._shards = shards
        self._stamps = dict(shards.stamps if stamps is None else stamps)
        self._files: dict[str, int] = {}
        self._tables: dict[str, _Table] = {}
        self._lock = threading.Lock()
        try:
            for name in self._stamps:
                self._files[name] = os.open(shards.path / name, os.O_RDONLY | os.O_CLOEXEC)
            self.check_unchanged()
        except OSError as error:
            self.close()
            raise SourceError(f"{error.filename}: {error.strerror}") from error
        except SourceError:
            self.close()
            raise

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``; delivers the stored dtype."""
        tensor = self._shards.tensors[name]
        size = item_size(tensor.dtype)
        out = staging[: (stop - start) * size]
        if start == stop:
            return tensor.dtype
        table = self._table(tensor)
        columns = table.columns
        first, last = start // columns, -(-stop // columns)
        if last == first + 1:
            # A part of one row.
            at = start - first * columns
            self._fill(table, first, first + 1, at, at + stop - start, out.view(WORDS[size])[None])
        elif start % columns == 0 and stop % columns == 0:
            whole = out.view(WORDS[size]).reshape(last - first, columns)
            self._fill(table, first, last, 0, columns, whole)
        else:
            rows = np.empty((last - first, columns), WORDS[size])
            self._fill(table, first, last, 0, columns, rows)
            wanted = rows.reshape(-1)[start - first * columns : stop - first * columns]
            out.view(WORDS[size])[:] = wanted
        return tensor.dtype

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``; tells of the pieces' whole rows."""
        tensor = self._shards.tensors[name]
        table = self._table(tensor)
        for box in table.between(start // table.columns, -(-stop // table.columns)):
            low, high = max(box.row, start // table.columns), -(-stop // table.columns)
            skip = (low - box.row) * box.row_step * table.size
            count = (min(high, box.row + box.rows) - low) * box.row_step * table.size
            if box.column_step == 1:
                file = self._files[box.file]
                os.posix_fadvise(file, box.start + skip, count, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        for name, seen in self._stamps.items():
            path = self._shards.path / name
            if FileStamp.of(os.fstat(self._files[name])) != seen or stamp(path) != seen:
                raise SourceError(
                    f"{path} changed after it was looked at; run the command again when nobody "
                    "writes it"
                )

    def close(self) -> None:
        """See ``TensorReader``."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> ShardedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _table(self, tensor: ShardedTensor) -> _Table:
        with self._lock:
            if tensor.name not in self._tables:
                # One tensor is read at a time; those before it are not needed again.
                if len(self._tables) > 64:
                    self._tables.clear()
                self._tables[tensor.name] = _Table(tensor, self._place)
            return self._tables[tensor.name]

    def _place(self, tensor: ShardedTensor, piece: ShardBox) -> Place:
        rows: RowsOf | None = None
        where, shape = piece.place, piece.shape
        if isinstance(where, RowsOf):
            rows, shape = where, where.shape
            where = where.place
        if isinstance(where, Payload):
            assert self._shards.unpack is not None
            where = self._shards.unpack(self._shards.path, where, tensor.dtype, shape)
        if rows is None:
            return where
        strides = where.strides or _row_major(shape)
        start = where.start + rows.first * strides[0] * item_size(tensor.dtype)
        return Place(where.file, start, (strides[0] * rows.step, *strides[1:]))

    def _fill(
        self, table: _Table, first: int, last: int, left: int, right: int, out: npt.NDArray[Any]
    ) -> None:
        """Rows ``first`` to ``last``, columns ``left`` to ``right``, into ``out``."""
        for box in table.between(first, last):
            top, bottom = max(first, box.row), min(last, box.row + box.rows)
            near, far = max(left, box.column), min(right, box.column + box.columns)
            if near >= far:
                continue
            target = out[top - first : bottom - first, near - left : far - left]
            begin = (top - box.row) * box.row_step + (near - box.column) * box.column_step
            place = box.start + begin * table.size
            steps = (box.row_step, box.column_step)
            is_dense = box.column_step == 1 and (
                len(target) == 1 or box.row_step == target.shape[1]
            )
            if is_dense and target.flags.c_contiguous:
                self._read_into(table.name, box.file, place, target.reshape(-1).view(np.uint8))
                continue
            extent = sum((n - 1) * step for n, step in zip(target.shape, steps, strict=True)) + 1
            buffer = np.empty(extent, out.dtype)
            self._read_into(table.name, box.file, place, buffer.view(np.uint8))
            strides = [step * table.size for step in steps]
            target[...] = np.lib.stride_tricks.as_strided(buffer, target.shape, strides)

    def _read_into(self, name: str, file: str, position: int, out: Bytes) -> None:
        view = out.data
        while view:
            try:
                n = os.preadv(self._files[file], [view], position)
            except OSError as error:
                raise SourceError(
                    f"{self._shards.path / file} cannot be read at byte {position}, tensor {name}: "
                    f"{error.strerror}"
                ) from error
            if n == 0:
                raise SourceError(
                    f"{self._shards.path / file} ends at byte {position}, inside tensor {name}: it "
                    "was cut"
                )
            view, position = view[n:], position + n


@dataclass(frozen=True)
class _Box:
    """A piece, or a part of one, in a tensor laid out as rows and columns."""

    row: int
    rows: int
    column: int
    columns: int
    file: str
    start: int
    row_step: int
    column_step: int


class _Table:
    """A tensor as rows and columns, so that each of its pieces is some boxes.

    The columns are all axes from the last one that is cut on; where none is cut but the first, the
    tensor is one column, and any range of it can be read alone. Pieces whose elements do not lie
    row by row have the last axis as columns.
    """

    def __init__(
        self, tensor: ShardedTensor, place: Callable[[ShardedTensor, ShardBox], Place]
    ) -> None:
        self.name = tensor.name
        self.size = item_size(tensor.dtype)
        grid = tensor.grid
        pieces = [piece for piece in tensor.pieces if math.prod(piece.shape)]
        placed = [(piece, place(tensor, piece)) for piece in pieces]
        cut = [a for a in range(len(grid)) if any(p.shape[a] != grid[a] for p in pieces)]
        axis = cut[-1] if cut else 0
        if any(_steps(p, at)[axis:] != _row_major(p.shape)[axis:] for p, at in placed):
            axis = len(grid) - 1
        self.columns = math.prod(grid[axis:]) if axis else 1
        boxes = [box for p, at in placed for box in self._boxes_of(grid, axis, p, at)]
        self._boxes = sorted(boxes, key=lambda box: box.row)
        self._ends = [0]
        """The furthest row that the boxes before each one reach."""
        for box in self._boxes:
            self._ends.append(max(self._ends[-1], box.row + box.rows))

    def between(self, first: int, last: int) -> Iterator[_Box]:
        """The boxes that have a row of these."""
        begin = max(0, bisect.bisect_right(self._ends, first) - 1)
        for box in self._boxes[begin:]:
            if box.row >= last:
                break
            if box.row + box.rows > first:
                yield box

    def _boxes_of(
        self, grid: tuple[int, ...], axis: int, piece: ShardBox, place: Place
    ) -> Iterator[_Box]:
        offset, shape, steps = piece.offset, piece.shape, _steps(piece, place)
        unit = math.prod(grid[axis + 1 :])
        if axis == 0:
            row_step = steps[0] if len(grid) == 1 else 1
            rows = shape[0] * unit
            yield _Box(offset[0] * unit, rows, 0, 1, place.file, place.start, row_step, 1)
            return
        # The axis before the cut one has its rows at one distance; those before it, each its own.
        for outer in np.ndindex(*shape[: axis - 1]):
            row, skip = 0, 0
            for at, begin, most, step in zip(outer, offset, grid, steps, strict=False):
                row, skip = row * most + begin + at, skip + at * step
            yield _Box(
                row=row * grid[axis - 1] + offset[axis - 1],
                rows=shape[axis - 1],
                column=offset[axis] * unit,
                columns=shape[axis] * unit,
                file=place.file,
                start=place.start + skip * self.size,
                row_step=steps[axis - 1],
                column_step=steps[axis] if unit == 1 else 1,
            )


def _steps(piece: ShardBox, place: Place) -> tuple[int, ...]:
    return _row_major(piece.shape) if place.strides is None else place.strides


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
