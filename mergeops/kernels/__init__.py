"""Compiled loops for the CPU: from the stored bits to the saved bits without a trip to memory.

A kernel goes through a chunk in blocks that stay in the processor's first cache, and does there,
one after the other, the same float32 operations in the same order as the methods do on tensors: so
its bits are theirs. What is compiled is kept on disk by numba; the machine's next start finds it.

Inputs are rows of bits, ``row`` elements apart in one flat array: uint16 (bfloat16, ``shift`` 16)
or uint32 (float32, ``shift`` 0).
"""
