"""What a fine-tune changed, module by module: linear layers, and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergeops.architectures import ModelFit
from mergeops.checkpoint import FLOATS, StoredTensor
from mergeops.errors import MergeError

LINEAR = ("linear", "conv1d")
Tensors = Mapping[str, StoredTensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor of the files is in the model in memory."""

    tensor: str
    """Its name in the files."""
    module: str | None
    """The module that owns it; None where loading puts several tensors together."""
    kind: str | None
    """See ``ModelFit.layers``."""
    is_weight: bool

    @property
    def is_matrix(self) -> bool:
        """Whether it is the weight of a linear layer, to which LoRA adds."""
        return self.kind in LINEAR and self.is_weight


def places(
    base: Tensors, tuned: Shapes, fit: ModelFit, called: str = "the fine-tune"
) -> list[TensorPlace]:
    """Where each tensor of both is in the model.

    Args:
        base: by the names of the files.
        tuned: shapes by the same names.
        fit: of the base.
        called: what messages call the tuned one.

    Raises:
        MergeError: one has a tensor that the other lacks, or in another shape.
    """
    for name in sorted(base.keys() | tuned.keys()):
        if name not in tuned or name not in base:
            lacking = called if name in base else "the base"
            raise MergeError(f"{lacking} has no {name}; an adapter changes tensors that both have")
        if base[name].shape != tuned[name]:
            raise MergeError(
                f"{name} is {list(base[name].shape)} in the base and {list(tuned[name])} in "
                f"{called}; an adapter keeps every shape, so give the base the same vocabulary "
                "first"
            )
    in_memory = fit.in_memory()
    found = []
    for name, stored in base.items():
        if stored.dtype not in FLOATS:
            continue
        parameter = in_memory.get(name)
        module = None if parameter is None else parameter.rpartition(".")[0]
        kind = None if module is None else fit.layers.get(module)
        is_weight = parameter is not None and parameter.endswith(".weight")
        found.append(TensorPlace(name, module, kind, is_weight))
    return found
