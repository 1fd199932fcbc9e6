"""Reads an adapter on its base as if both were a full checkpoint.

Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1: W + alpha / r * B A; with rsLoRA
(Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) W + alpha / sqrt(r) * B A. What is more than
that is made by PEFT's own layers.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mergeops.adapters.adapter import Adapter
from mergeops.adapters.peft_layers import PeftLayers
from mergeops.adapters.weight_changes import ByPeft, LowRank, TensorOrigin, TokenRows, ZeroEnd
from mergeops.checkpoint import (
    Bytes,
    CheckpointReader,
    FileStamp,
    as_floats,
    as_tensor,
    item_size,
    read_bytes,
    read_range,
    read_tensor,
)
from mergeops.errors import SourceError
from mergeops.kernels import KERNEL_DTYPES, TILE, bits_of, is_loaded, loaded
from mergeops.lazy_torch import torch

Made = TypeVar("Made")
BLOCK_ELEMENTS = 65536
"""B A is computed for blocks of whole rows of about this size, wherever a read begins."""
KEPT_BYTES = 1 << 28
"""Tensors that were made whole are kept up to this size, and two of any size."""


class AdapterReader:
    """Reads the adapted model; adapted tensors come in the compute dtype.

    Args:
        adapter: from ``open_adapter``.
        compute: F32 or F64.
        base_stamps: what the base's files must look like.
        adapter_stamps: what the adapter's file must look like.

    Raises:
        SourceError: a file is missing or changed.
    """

    def __init__(
        self,
        adapter: Adapter,
        compute: str,
        base_stamps: Mapping[str, FileStamp] | None = None,
        adapter_stamps: Mapping[str, FileStamp] | None = None,
    ) -> None:
        self._adapter = adapter
        self._compute = compute
        self._base = CheckpointReader(adapter.base, base_stamps)
        try:
            self._own = CheckpointReader(adapter.adapter, adapter_stamps)
        except SourceError:
            self._base.close()
            raise
        self._made = KeptTensors()
        self._layers = PeftLayers(adapter, lambda key: read_tensor(self._own, key))

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``."""
        change = self._adapter.changes.get(name)
        reader, key = self._origin(name)
        if change is None:
            return reader.read(key, start, stop, staging)
        if isinstance(change, ZeroEnd):
            staging[: (stop - start) * item_size(reader.stored(key).dtype)] = 0
            end = reader.stored(key).numel
            return reader.read(key, min(start, end), min(stop, end), staging)
        if (
            isinstance(change, LowRank)
            and self._compute == "F32"
            and self._add_product(name, change, start, stop, staging)
        ):
            return self._compute
        if isinstance(change, ByPeft):
            values = self._by_peft(name, change).view(-1)[start:stop]
        else:
            values = read_range(reader, key, start, stop).double()
            if isinstance(change, TokenRows):
                self._put_rows(change, self._adapter.tensors[name].shape[1], start, values)
            else:
                values += self._product(change, self._adapter.tensors[name].shape, start, stop)
        as_tensor(staging, self._compute, stop - start).copy_(values)
        return self._compute

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``."""
        reader, key = self._origin(name)
        if reader is self._base:
            self._base.prefetch(key, start, stop)

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        self._base.check_unchanged()
        self._own.check_unchanged()

    def close(self) -> None:
        """See ``TensorReader``."""
        self._base.close()
        self._own.close()

    def _origin(self, name: str) -> tuple[CheckpointReader, str]:
        origin = self._adapter.origins.get(name, TensorOrigin(name))
        return (self._own if origin.own else self._base), origin.key

    def _put_rows(self, change: TokenRows, columns: int, start: int, values: torch.Tensor) -> None:
        rows = self._made.get(change.key, lambda: read_tensor(self._own, change.key).double())
        stop = start + len(values)
        for token, row in zip(change.tokens, rows, strict=True):
            begin, end = max(start, token * columns), min(stop, (token + 1) * columns)
            if begin < end:
                part = row[begin - token * columns : end - token * columns]
                values[begin - start : end - start] = part

    def _add_product(
        self, name: str, change: LowRank, start: int, stop: int, staging: Bytes
    ) -> bool:
        """Elements of a matrix plus scale * B A by a kernel, in float64, with the bits that
        ``_product`` leads to; False where it is left to that."""
        reader, key = self._origin(name)
        is_plain = not (change.turned or change.is_convolution or change.row)
        if not is_plain or change.experts != 1 or stop == start or not is_loaded():
            return False
        if reader.stored(key).dtype not in KERNEL_DTYPES:
            return False
        bits = bits_of(*read_bytes(reader, key, start, stop))
        assert bits is not None
        columns = self._adapter.tensors[name].shape[-1]
        a = self._made.get(f"{change.a} as an array", lambda: self._in_double(change.a))
        rank = a.size // columns
        first, last = start // columns, -(-stop // columns)
        b = self._in_double(change.b, first * rank, last * rank)
        loaded("add_product")(
            *bits,
            start,
            columns,
            a.reshape(rank, columns),
            b.reshape(-1, rank),
            change.scale,
            np.empty(TILE),
            staging[: (stop - start) * item_size("F32")].view(np.float32),
        )
        return True

    def _in_double(self, key: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Elements of one of the adapter's tensors, flattened, float64."""
        stop = self._own.stored(key).numel if stop is None else stop
        return as_floats(*read_bytes(self._own, key, start, stop), "F64")

    def _product(
        self, change: LowRank, shape: tuple[int, ...], start: int, stop: int
    ) -> torch.Tensor:
        """Elements ``start`` to ``stop`` of the flattened scale * B A, in float64.

        In float64 whatever the compute dtype: how a matrix product rounds depends on its size,
        threads and CPU, and the difference is gone after rounding to float32.
        """
        rows, columns = shape[-2:]
        if change.is_convolution:
            rows, columns = shape[0], math.prod(shape[1:])
        step = max(1, BLOCK_ELEMENTS // columns)
        parts = []
        first = None
        for matrix in range(start // (rows * columns), -(-stop // (rows * columns))):
            begin = max(start - matrix * rows * columns, 0)
            end = min(stop - matrix * rows * columns, rows * columns)
            for block in range(
                begin // columns // step, math.ceil(math.ceil(end / columns) / step)
            ):
                low, high = block * step, min((block + 1) * step, rows)
                first = (matrix * rows + low) * columns if first is None else first
                parts.append(self._block(change, matrix, low, high).mul_(change.scale).view(-1))
        if not parts or first is None:
            return torch.empty(0, dtype=torch.float64)
        return torch.cat(parts)[start - first : stop - first]

    def _block(self, change: LowRank, matrix: int, low: int, high: int) -> torch.Tensor:
        """Rows ``low`` to ``high`` of B A of one expert, or of the transposed B A."""
        a = self._made.get(change.a, lambda: read_tensor(self._own, change.a).double().flatten(1))
        rank = a.shape[0] // change.experts
        if not change.turned and change.experts == 1:
            b = read_range(self._own, change.b, low * rank, high * rank)
            return _sum_of_products(b.view(-1, rank).double(), a)
        expert = matrix if change.expert is None else change.expert
        b = self._made.get(change.b, lambda: read_tensor(self._own, change.b).double())
        a = a[expert * rank : (expert + 1) * rank]
        b = b.view(b.shape[0], rank, change.experts)[:, :, expert]
        low, high = low + change.row, high + change.row
        return a[:, low:high].T @ b.T if change.turned else b[low:high] @ a

    def _by_peft(self, name: str, change: ByPeft) -> torch.Tensor:
        layer = self._adapter.layers[change.module]

        def whole(tensor: str) -> torch.Tensor:
            reader, key = self._origin(tensor)
            return read_tensor(reader, key).double()

        def make() -> torch.Tensor:
            bias = None if layer.bias is None else whole(layer.bias)
            weight, bias = self._layers.merged(change.module, whole(layer.weight), bias)
            made = bias if change.is_bias else weight
            assert made is not None
            return made

        return self._made.get(name, make)


def _sum_of_products(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """B A, float64, added up in the order of the kernel ``add_product``: four ranks at a time."""
    total = torch.zeros(b.shape[0], a.shape[1], dtype=torch.float64)
    terms = (b[:, k, None] * a[k] for k in range(a.shape[0]))
    for _ in range(a.shape[0] // 4):
        total += (next(terms) + next(terms)) + (next(terms) + next(terms))
    for term in terms:
        total += term
    return total


class KeptTensors:
    """Tensors that several reads need, made once; the oldest are forgotten."""

    def __init__(self) -> None:
        self._tensors: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], Made]) -> Made:
        """The tensor or array of this name; of several threads that need it, one makes it."""
        with self._lock:
            if name not in self._tensors:
                self._tensors[name] = make()
                sizes = [tensor.nbytes for tensor in self._tensors.values()]
                while len(sizes) > 2 and sum(sizes) > KEPT_BYTES:
                    self._tensors.popitem(last=False)
                    del sizes[0]
            self._tensors.move_to_end(name)
            made: Made = self._tensors[name]
            return made
