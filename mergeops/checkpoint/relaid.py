"""A checkpoint whose embeddings are read in another order of rows, some of them from elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeops.checkpoint.dtypes import item_size
from mergeops.checkpoint.reader import Bytes, TensorReader, as_floats, read_bytes

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
"""``[rows, columns]``, in the compute dtype."""
GAP_BYTES = 1 << 16
"""Rows that are nearer to each other than this are read in one go: cheaper than to ask twice."""
AVERAGE = -2
AVERAGED_ROWS = 1024
"""Rows at a time when all are averaged."""


class RowTable:
    """Which row of which input each row is, for one input.

    Args:
        runs: flat triples (origin, first row there, how many). An origin is an input's number, -1
            for zeros, ``AVERAGE`` for the mean of all rows of other origins, or -3 - k for the
            k-th of ``means``.
        means: flat pairs (input's number, first row there), whose rows are averaged.
    """

    def __init__(self, runs: Sequence[int], means: Sequence[Sequence[int]]) -> None:
        triples = np.asarray(runs, dtype=np.int64).reshape(-1, 3)
        lengths = triples[:, 2]
        starts = np.cumsum(lengths) - lengths
        within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        self.origin: Ints = np.repeat(triples[:, 0], lengths)
        self.row: Ints = np.repeat(triples[:, 1], lengths) + within
        self.means = [list(zip(flat[::2], flat[1::2], strict=True)) for flat in means]


class RelaidReader:
    """Reads one input of several by its row table; other tensors are read as they are.

    Args:
        own: this input.
        readers: all inputs, in the order that numbers them.
        runs: where its rows come from, as ``RowTable`` takes it.
        means: rows that are averaged, as ``RowTable`` takes it.
        columns: tensor with a row for each token -> elements in a row.
        compute: safetensors name of the dtype that rows of different inputs are brought to.
    """

    def __init__(
        self,
        own: TensorReader,
        readers: Sequence[TensorReader],
        runs: Sequence[int],
        means: Sequence[Sequence[int]],
        columns: Mapping[str, int],
        compute: str,
    ) -> None:
        self._own = own
        self._readers = readers
        self._table = RowTable(runs, means)
        self._columns = columns
        self._compute = compute
        self._dtype = np.dtype(np.float64 if compute == "F64" else np.float32)
        self._averages: dict[str, Rows] = {}
        self._lock = threading.Lock()

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``; re-laid rows come as stored where they lie together, else in the
        compute dtype."""
        if name not in self._columns or start == stop:
            return self._own.read(name, start, stop, staging)
        columns = self._columns[name]
        first, last = start // columns, -(-stop // columns)
        origin, row = self._table.origin[first:last], self._table.row[first:last]
        if (
            origin[0] >= 0
            and (origin == origin[0]).all()
            and row[-1] - row[0] == last - first - 1
            and (np.diff(row) == 1).all()
        ):
            moved = (int(row[0]) - first) * columns
            reader = self._readers[int(origin[0])]
            return reader.read(name, start + moved, stop + moved, staging)
        rows = self._rows(name, first, last, columns)
        if (is_average := origin == AVERAGE).any():
            rows[is_average] = self._average(name, columns)
        wanted = rows.reshape(-1)[start - first * columns : stop - first * columns]
        staging[: wanted.nbytes].view(self._dtype)[:] = wanted
        return self._compute

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``; for rows of other inputs, the system reads ahead by itself."""
        if name not in self._columns:
            self._own.prefetch(name, start, stop)

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        for reader in self._readers:
            reader.check_unchanged()

    def close(self) -> None:
        """See ``TensorReader``; the other inputs are closed by their own."""
        self._own.close()

    def _rows(self, name: str, first: int, last: int, columns: int) -> Rows:
        """Rows ``first`` to ``last`` in the compute dtype; those that are an average are zeros."""
        origin, row = self._table.origin[first:last], self._table.row[first:last]
        rows = np.zeros((last - first, columns), self._dtype)
        for source in np.unique(origin).tolist():
            at = np.flatnonzero(origin == source)
            if source >= 0:
                rows[at] = self._gather(source, name, row[at], columns)
            elif source < AVERAGE:
                pairs = self._table.means[AVERAGE - 1 - source]
                total = np.zeros((at.size, columns))
                for number, begin in pairs:
                    total += self._gather(number, name, row[at] + begin, columns)
                rows[at] = total / len(pairs)
        return rows

    def _average(self, name: str, columns: int) -> Rows:
        """``[columns]``, the mean of all rows that are none themselves; read once a tensor."""
        with self._lock:
            if name not in self._averages:
                counted = self._table.origin != AVERAGE
                total = np.zeros(columns)
                for first in range(0, counted.size, AVERAGED_ROWS):
                    last = min(first + AVERAGED_ROWS, counted.size)
                    total += _sum_of_rows(self._rows(name, first, last, columns))
                mean = total / int(counted.sum())
                self._averages[name] = mean.astype(self._dtype)
            return self._averages[name]

    def _gather(self, number: int, name: str, rows: Ints, columns: int) -> Rows:
        """Rows of one input, ``[rows, columns]``, in the compute dtype."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        near = max(1, GAP_BYTES // (columns * item_size(self._compute)))
        edges = np.flatnonzero(np.diff(ordered) > near) + 1
        begins, ends = np.r_[0, edges], np.r_[edges, rows.size]
        lows, highs = ordered[begins], ordered[ends - 1] + 1
        offsets = np.cumsum(highs - lows) - (highs - lows)
        reader = self._readers[number]
        spans = []
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            stored, dtype = read_bytes(reader, name, low * columns, high * columns)
            spans.append(stored)
        place = np.empty_like(rows)
        place[order] = ordered + np.repeat(offsets - lows, ends - begins)
        gathered = np.concatenate(spans).reshape(int((highs - lows).sum()), -1)[place]
        return as_floats(gathered.reshape(-1), dtype, self._compute).reshape(-1, columns)


def _sum_of_rows(rows: Rows) -> Rows:
    """Add rows pair by pair in float64: the order, and so the result, is the same on any number of
    threads."""
    rows = rows.astype(np.float64)
    while len(rows) > 1:
        half = len(rows) // 2
        pairs = rows[:half] + rows[half : 2 * half]
        rows = np.concatenate([pairs, rows[2 * half :]])
    return rows[0]  # type: ignore[no-any-return]
