"""Experts of a layer in one tensor, seen as the tensors that other files have one by one.

transformers 5 joins them in memory, and saves them so with ``save_original_format=False``: an
``[experts, rows, columns]`` tensor has an expert's matrices behind each other, so each is a range.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from mergeops.architectures.model_fit import EXPERTS_JOINED, ModelFit, Shape
from mergeops.checkpoint import StoredTensor, TensorCut, item_size

ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a tensor that is of one expert alone."""


@dataclasses.dataclass(frozen=True)
class ExpertMatrix:
    """A tensor on disk that is a part of a parameter ``[experts, rows, columns]``."""

    tensor: str
    expert: int
    row: int
    """The row of the expert's matrix at which it begins."""


def expert_matrices(
    fit: ModelFit, parameter: str, shapes: Mapping[str, Shape]
) -> list[ExpertMatrix] | None:
    """What a parameter is made of, where the experts lie one by one on disk.

    Args:
        fit: how the tensors fit their model.
        parameter: its name in memory.
        shapes: tensor on disk -> shape.

    Returns:
        None where it is no tensor of experts, or is put together in another way.
    """
    shape, parts = fit.parameters[parameter], fit.parts.get(parameter, ())
    if fit.operations.get(parameter) not in EXPERTS_JOINED or len(shape) != 3:
        return None
    experts, rows, columns = shape
    kinds = len(parts) // experts
    heights = [shapes[parts[kind * experts]][0] for kind in range(kinds)]
    expected = [(heights[i // experts], columns) for i in range(kinds * experts)]
    if not kinds or sum(heights) != rows or [shapes[part] for part in parts] != expected:
        return None
    begins = [sum(heights[:kind]) for kind in range(kinds)]
    return [ExpertMatrix(part, i % experts, begins[i // experts]) for i, part in enumerate(parts)]


def cut_into_experts(
    fit: ModelFit,
    tensors: Mapping[str, StoredTensor],
    other: ModelFit,
    shapes: Mapping[str, Shape],
) -> tuple[dict[str, StoredTensor], dict[str, TensorCut]]:
    """A checkpoint with experts in one tensor, by the names of one that has them one by one.

    Args:
        fit: of the checkpoint.
        tensors: of the checkpoint.
        other: the fit of tensors with experts one by one, in the same model.
        shapes: of those tensors.

    Returns:
        The tensors, with matrices in place of what is cut; and where each matrix lies.
    """
    names = {parameter: name for name, parameter in fit.in_memory().items()}
    seen, cuts = dict(tensors), {}
    for parameter, shape in other.parameters.items():
        name = names.get(parameter, "")
        matrices = expert_matrices(other, parameter, shapes)
        if matrices is None or name not in tensors or tensors[name].shape != shape:
            continue
        stored = seen.pop(name)
        _, rows, columns = shape
        for matrix in matrices:
            first = (matrix.expert * rows + matrix.row) * columns
            begin = stored.start + first * item_size(stored.dtype)
            size = shapes[matrix.tensor][0] * columns * item_size(stored.dtype)
            seen[matrix.tensor] = dataclasses.replace(
                stored,
                name=matrix.tensor,
                shape=shapes[matrix.tensor],
                start=begin,
                stop=begin + size,
            )
            cuts[matrix.tensor] = TensorCut(name, first)
    return seen, cuts
