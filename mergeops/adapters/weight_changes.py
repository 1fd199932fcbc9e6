"""What an adapter does to one tensor of its base."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorOrigin:
    """Where a tensor's values are before they are changed."""

    key: str
    """Its name in the file."""
    own: bool = False
    """Whether it is in the adapter's file, not in the base's."""
    untrained: str | None = None
    """Key of what a saved module was before it was trained, where the adapter's file has it."""


@dataclass(frozen=True)
class LowRank:
    """scale * B A is added; of experts, that of each expert to its own matrix."""

    a: str
    """Key of A ``[experts * rank, inputs]``, expert by expert."""
    b: str
    """Key of B ``[outputs, rank * experts]``, the experts of one rank beside each other."""
    scale: float
    turned: bool = False
    """Whether the weight is ``[inputs, outputs]``, so that (B A) transposed is added."""
    experts: int = 1
    expert: int | None = None
    """Which expert the tensor on disk is; None where it is all of them, or where there are none."""
    row: int = 0
    """The row of B A at which the tensor on disk begins."""
    is_convolution: bool = False
    """Whether all three have a kernel's dimensions, too: ``[outputs, inputs, height, width]``."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of some tokens are replaced."""

    key: str
    """Key of the rows ``[tokens, columns]``."""
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ZeroEnd:
    """Entries of tokens that were added are zeros, as transformers adds them to BART's
    ``final_logits_bias``."""


@dataclass(frozen=True)
class ByPeft:
    """PEFT's own layer makes it."""

    module: str
    """Which of the adapter's layers."""
    is_bias: bool = False


Change = LowRank | TokenRows | ZeroEnd | ByPeft


@dataclass(frozen=True)
class AdaptedLayer:
    """One module as PEFT adapts it."""

    module: str
    """Its name in memory."""
    kind: str
    """linear, conv1d or embedding."""
    weight: str
    """The tensor on disk."""
    bias: str | None
    parts: dict[str, str] = field(default_factory=dict)
    """As in ``ModuleTensors``."""
