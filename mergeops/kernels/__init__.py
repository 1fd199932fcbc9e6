"""Compiled loops for the CPU: from the stored bits to the saved bits without a trip to memory.

A kernel goes through a chunk in blocks that stay in the processor's first cache, and does there,
one after the other, the same float32 operations in the same order as the methods do on tensors: so
its bits are theirs. numba compiles them once for a machine (``compiler``); what it makes is kept on
disk, and loaded without it (``native``).

Inputs are rows of bits, ``row`` elements apart in one flat array: uint16 (bfloat16, ``shift`` 16)
or uint32 (float32, ``shift`` 0).

A kernel allocates nothing, since nothing of numba is there when it runs: the caller brings scratch
arrays, whose content says nothing, and an array is copied to a slice by a loop.

Stands on: nothing.
"""

from mergeops.kernels.blocks import BLOCK, COLUMNS, NOT_FINITE, STRIPS, TILE, TOO_MANY, WIDTH
from mergeops.kernels.bytes_as_bits import KERNEL_DTYPES, bits_of
from mergeops.kernels.cache_folder import user_cache
from mergeops.kernels.loader import are_kept, is_loaded, loaded

__all__ = [
    "BLOCK",
    "COLUMNS",
    "KERNEL_DTYPES",
    "NOT_FINITE",
    "STRIPS",
    "TILE",
    "TOO_MANY",
    "WIDTH",
    "are_kept",
    "bits_of",
    "is_loaded",
    "loaded",
    "user_cache",
]
