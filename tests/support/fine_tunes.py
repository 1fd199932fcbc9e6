"""Bases with fine-tunes, for tests of merge methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fine_tunes(
    shape: Sequence[int],
    n: int,
    seed: int = 0,
    noise: float = 0.05,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, list[Tensor]]:
    """A random base and n fine-tunes, with values that bfloat16 can hold.

    The fine-tunes share a part of their change, and each left 30 % of the entries alone.
    """
    generator = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.randn(tuple(shape), generator=generator)

    base = random().bfloat16().to(dtype)
    common = random()
    sources = []
    for _ in range(n):
        change = noise * (random() + 0.5 * common)
        change[torch.rand(tuple(shape), generator=generator) < 0.3] = 0.0
        sources.append((base + change.to(dtype)).bfloat16().to(dtype))
    return base, sources


def exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float64."""
    return [tensor.double() for tensor in tensors]
