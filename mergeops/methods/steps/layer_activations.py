"""What a method is given of a weight besides its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeops.lazy_torch import Tensor


@dataclass(frozen=True)
class LayerActivations:
    """What was measured of one source's weight while it read the prompts."""

    values: Tensor
    """``gram``: X^T X ``[inputs, inputs]`` of its inputs X; ``fisher``: mean squared gradients, of
    the weight's shape. float64, on the CPU."""
    tokens: int
    """That its layer got, at least one."""
    inputs_first: bool = False
    """Whether the weight is ``[inputs, outputs]``, as GPT-2 has them."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape may be what was measured: a larger vocabulary, laid out
        anew, is not."""
        if tuple(self.values.shape) == tuple(shape):
            return True
        return len(shape) == 2 and len(self.values) == shape[0 if self.inputs_first else 1]
