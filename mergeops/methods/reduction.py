"""Sums whose rounding does not depend on chunks, threads or device."""

from __future__ import annotations

import torch
from torch import Tensor

from mergeops.methods import BLOCK


def block_sums(values: Tensor) -> Tensor:
    """Sum of each block of ``BLOCK`` entries, added pairwise in one fixed tree.

    Args:
        values: ``[m]``; the last block may be short.

    Returns:
        ``[ceil(m / BLOCK)]``.
    """
    blocks = -(-values.numel() // BLOCK)
    if values.numel() < blocks * BLOCK:
        values = torch.nn.functional.pad(values, (0, blocks * BLOCK - values.numel()))
    width = BLOCK
    values = values.view(blocks, width)
    while width > 1:
        width //= 2
        values = values[:, :width] + values[:, width:]
    return values[:, 0]
