"""The numbers that codes of four or eight bits stand for, decoded range by range.

Formats: FP8 (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433), and the microscaling ones
with E2M1 codes and E8M0 scales (OCP MX 1.0,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

from mergeops.checkpoint.header import StoredTensor
from mergeops.lazy_torch import torch

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Four-bit numbers by their lower three bits; the fourth is the sign."""


class StoredReads(Protocol):
    """Reads ranges of what a checkpoint's files hold, whatever it stands for."""

    def stored_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Elements of a flattened tensor, in the format of the file."""
        ...

    def kept_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """The same, where it is likely to be asked for again soon; not to be changed."""
        ...


class CodedTensor(Protocol):
    """A tensor whose numbers are computed from several stored ones."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        ...

    def numbers(self, reads: StoredReads, start: int, stop: int) -> torch.Tensor:
        """Elements ``start`` to ``stop`` of the flattened numbers, float32."""
        ...

    def extent(self, start: int, stop: int) -> tuple[StoredTensor, int, int]:
        """The range of codes that ``numbers`` reads."""
        ...


@dataclass(frozen=True)
class ScaledCodes:
    """Matrices of codes, with a scale for each block of some rows and columns.

    A number is code * scale, or code * (scale / divisor), in float32.
    """

    codes: StoredTensor
    """``[..., rows, columns]``; two to a byte where they have four bits, the lower half first."""
    scales: StoredTensor
    """``[..., ceil(rows / block[0]), ceil(columns / block[1])]``, maybe with fewer dimensions."""
    shape: tuple[int, ...]
    block: tuple[int, int]
    divisor: StoredTensor | None = None
    """One number that all scales are divided by."""

    @property
    def per_byte(self) -> int:
        """Codes in a byte."""
        return 2 if self.codes.dtype == "U8" else 1

    def numbers(self, reads: StoredReads, start: int, stop: int) -> torch.Tensor:
        """See ``CodedTensor``."""
        columns = self.shape[-1]
        first, last = start // columns, -(-stop // columns)
        codes = reads.stored_range(*self.extent(start, stop))
        values = self._values(codes).view(last - first, columns)
        values *= self._scales_of(reads, first, last)
        return values.view(-1)[start - first * columns : stop - first * columns]

    def extent(self, start: int, stop: int) -> tuple[StoredTensor, int, int]:
        """See ``CodedTensor``: whole rows."""
        columns = self.shape[-1]
        width = columns // self.per_byte
        return self.codes, start // columns * width, -(-stop // columns) * width

    def _values(self, codes: torch.Tensor) -> torch.Tensor:
        return _four_bit_values(codes) if self.per_byte == 2 else codes.float()

    def _scales_of(self, reads: StoredReads, first: int, last: int) -> torch.Tensor:
        """A scale for each number of some rows, ``[last - first, columns]`` or broadcast to it."""
        rows, columns = (self.shape[-2] if len(self.shape) > 1 else 1), self.shape[-1]
        high, wide = -(-rows // self.block[0]), -(-columns // self.block[1])
        row = torch.arange(first, last)
        grid_row = row // rows * high + row % rows // self.block[0]
        begin, end = int(grid_row[0]), int(grid_row[-1]) + 1
        stored = reads.kept_range(self.scales, begin * wide, end * wide)
        scales = scale_values(stored).view(-1, wide)
        if self.divisor is not None:
            scales = scales / reads.kept_range(self.divisor, 0, 1).float()
        by_row = scales[grid_row - begin]
        if wide == 1:
            return by_row
        return by_row.repeat_interleave(self.block[1], dim=1)[:, :columns]


@dataclass(frozen=True)
class TransposedExperts:
    """Experts whose codes are stored ``[experts, out, in]`` and are numbers ``[experts, in, out]``,
    as GPT-OSS keeps them: in blocks of 32 with one E8M0 scale."""

    codes: StoredTensor
    """``[experts, out, in / 32, 16]``, U8."""
    scales: StoredTensor
    """``[experts, out, in / 32]``, U8."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``[experts, in, out]``."""
        experts, out, groups = self.scales.shape
        return experts, groups * 32, out

    def numbers(self, reads: StoredReads, start: int, stop: int) -> torch.Tensor:
        """See ``CodedTensor``."""
        _, rows, out = self.shape
        size = rows * out
        parts = []
        for expert in range(start // size, -(-stop // size)):
            begin, end = max(start - expert * size, 0), min(stop - expert * size, size)
            parts.append(self._of_expert(reads, expert, begin, end))
        return torch.cat(parts)

    def extent(self, start: int, stop: int) -> tuple[StoredTensor, int, int]:
        """See ``CodedTensor``: whole experts."""
        size = self.shape[1] * self.shape[2]
        return self.codes, start // size * size // 2, -(-stop // size) * size // 2

    def _of_expert(self, reads: StoredReads, expert: int, start: int, stop: int) -> torch.Tensor:
        _, rows, out = self.shape
        size = rows * out
        first, last = start // out // 32, -(-stop // (out * 32))
        codes = reads.kept_range(self.codes, expert * size // 2, (expert + 1) * size // 2)
        scales = reads.kept_range(self.scales, expert * size // 32, (expert + 1) * size // 32)
        values = _four_bit_values(codes.view(out, rows // 32, 16)[:, first:last])
        values = values.view(out, last - first, 32)
        values *= scale_values(scales.view(out, rows // 32)[:, first:last]).unsqueeze(2)
        flat = values.view(out, -1).t().reshape(-1)
        return flat[start - first * 32 * out : stop - first * 32 * out]


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """Scales as float32; bytes are exponents of two (E8M0)."""
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e8m0fnu)
    return scales.float()


def _four_bit_values(codes: torch.Tensor) -> torch.Tensor:
    """Two numbers for each byte, ``[bytes, 2]``."""
    return _pairs()[codes.reshape(-1).int()]


@cache
def _pairs() -> torch.Tensor:
    """Byte -> its two numbers, ``[256, 2]`` float32."""
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    byte = torch.arange(256)
    return torch.stack([values[byte % 16], values[byte // 16]], dim=1)
