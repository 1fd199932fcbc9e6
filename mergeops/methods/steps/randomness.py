"""Random numbers by counter: entry i's draw depends on the key and on i, and on nothing else.

SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195) written as the
function of its counter, in wrapping int64 arithmetic, which CPU and CUDA share.
"""

from __future__ import annotations

import hashlib

from mergeops.lazy_torch import Tensor, torch

_GAMMA = 0x9E3779B97F4A7C15
STEPS = 2**31
"""Probabilities are multiples of one over this."""


def random_key(seed: int, source_sha256: str, tensor: str) -> int:
    """A 64-bit key (unsigned) for one tensor of one source."""
    text = f"{seed}\n{source_sha256}\n{tensor}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def splitmix64(key: int, start: int, n: int, device: torch.device) -> Tensor:
    """Outputs ``start`` to ``start + n`` of the SplitMix64 stream of ``key``.

    Returns:
        ``[n]`` int64, the bits of the unsigned numbers.
    """
    z = torch.arange(start + 1, start + n + 1, dtype=torch.int64, device=device)
    z *= _signed(_GAMMA)
    z += _signed(key)
    scratch = torch.empty_like(z)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        torch.bitwise_right_shift(z, shift, out=scratch)
        # torch's shift keeps the sign; the mask makes it the unsigned one.
        scratch &= (1 << (64 - shift)) - 1
        z ^= scratch
        if factor != 1:
            z *= _signed(factor)
    return z


def draws(key: int, offset: int, n: int, device: torch.device) -> Tensor:
    """Independent uniform draws for the entries ``offset`` to ``offset + n`` of a tensor.

    Entry i takes 31 bits of the low half (i even) or the high half (i odd) of output i // 2.

    Args:
        key: see ``random_key``.
        offset: index of the first entry.
        n: number of entries.
        device: where the draws are made.

    Returns:
        ``[n]`` int32, from 0 to 2**31 - 1.
    """
    skip = offset % 2
    drawn = splitmix64(key, offset // 2, -(-(n + skip) // 2), device).view(torch.int32)
    drawn = drawn[skip : skip + n]
    drawn &= STEPS - 1
    return drawn


def limit(probability: float) -> int:
    """A draw below it keeps its entry, with a probability rounded to a multiple of 1 / STEPS."""
    return min(round(probability * STEPS), STEPS - 1)


def keep_mask(probability: float, key: int, offset: int, n: int, device: torch.device) -> Tensor:
    """Independent decisions for the entries ``offset`` to ``offset + n`` of a tensor.

    Args:
        probability: of keeping, rounded to a multiple of 2**-31.
        key: see ``random_key``.
        offset: index of the first entry.
        n: number of entries.
        device: where the draws are made.

    Returns:
        ``[n]`` int32: all bits set to keep, none to drop. As bits, since masks of bool make a
        processor guess at every entry.
    """
    mask = draws(key, offset, n, device)
    mask -= limit(probability)
    mask >>= 31
    return mask


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
