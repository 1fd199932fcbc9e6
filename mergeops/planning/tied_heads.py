"""Heads that are written although config.json ties them to the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergeops.architectures import ModelFit
from mergeops.checkpoint import CheckpointReader
from mergeops.planning.inputs import PlannedInput
from mergeops.planning.plan import TensorTask
from mergeops.planning.views import tied_setting

CHUNK = 1 << 20
"""Elements that are compared at a time."""


def part_heads(
    fit: ModelFit | None,
    tasks: Sequence[TensorTask],
    inputs: Sequence[PlannedInput],
    config: Mapping[str, Any],
    *,
    is_random: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Untie in config.json what is written twice and differs: some loaders would drop the head.

    Args:
        fit: the result in the model of its config.json.
        tasks: the tensors of the result.
        inputs: what they are merged from; an adapter is not looked into.
        config: the result's config.json.
        is_random: whether the method draws for each tensor anew.

    Returns:
        Changes of config.json, and warnings.
    """
    by_name = {task.name: task for task in tasks}
    for target, source in fit.tied.items() if fit else ():
        one, other = fit.parts.get(target, ()), fit.parts.get(source, ())
        if len(one) != 1 or len(other) != 1 or one == other:
            continue
        head, embeddings = by_name[one[0]], by_name[other[0]]
        alike = not is_random or head.kind != "merge"
        alike &= (head.shared, head.per_source) == (embeddings.shared, embeddings.per_source)
        if alike and all(_are_equal(planned, head, embeddings) for planned in inputs):
            continue
        return tied_setting(config, False), [
            f"config.json ties {head.name} to {embeddings.name}, and both are written and differ: "
            "the merge says tie_word_embeddings: false, so that both are loaded"
        ]
    return {}, []


def _are_equal(planned: PlannedInput, head: TensorTask, embeddings: TensorTask) -> bool:
    if planned.adapter_base is not None:
        return True
    names = [planned.renamed.get(task.name, task.name) for task in (head, embeddings)]
    with CheckpointReader.open(Path(planned.path), planned.stamps) as reader:
        size = head.numel
        staging = [np.zeros(8 * min(CHUNK, size), np.uint8) for _ in names]
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            one, other = (
                reader.read(name, start, stop, room)
                for name, room in zip(names, staging, strict=True)
            )
            if one != other or not np.array_equal(*staging):
                return False
    return True
