"""Sizes of blocks, and the numbers that kernels give back."""

RAISED = -(2**63)
"""What comes back from a kernel that raised."""

BLOCK = 16384
"""Chunks start at multiples of this many elements: sums over blocks do not depend on the chunks."""

WIDTH = 2048
"""Entries of a block."""
TILE = 512
"""Entries of which a sum of products is made at a time: a few rows of a factor stay in the
processor's first cache."""
STRIPS, COLUMNS = 8, 256
"""Of a tile in which products are added: ``STRIPS`` rows of ``COLUMNS`` entries."""
FINE, NOT_FINITE, TOO_MANY = 0, 1, 2
"""What ``decide`` returns."""
