"""Readers of a plan's inputs, checked to be the files that were planned with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from mergeops.adapters import AdapterReader, open_adapter
from mergeops.checkpoint import (
    ADAPTER_CONFIG,
    CheckpointReader,
    RelaidReader,
    RenamedReader,
    TensorReader,
    stamp,
)
from mergeops.errors import SourceError
from mergeops.planning import PlannedInput, VocabularyLayout
from mergeops.recover import ShardedReader, is_sharded, open_on_base


def open_input(planned: PlannedInput, compute: str) -> TensorReader:
    """A reader of an input's tensors, by the names that they have in the result.

    Args:
        planned: the input.
        compute: safetensors name of the dtype in which adapted tensors are delivered.

    Raises:
        SourceError: a file is missing or not the one that was planned with.
    """
    reader = _open(planned, compute)
    if planned.renamed or planned.cut:
        return RenamedReader(reader, planned.renamed, planned.cut)
    return reader


def _open(planned: PlannedInput, compute: str) -> TensorReader:
    if planned.adapter_base is None:
        return CheckpointReader.open(Path(planned.path), planned.stamps)
    if is_sharded(Path(planned.path)):
        model = open_on_base(Path(planned.path), Path(planned.adapter_base))
        return ShardedReader(model, planned.stamps)
    config = Path(planned.path) / ADAPTER_CONFIG
    if stamp(config) != planned.config_stamp:
        raise SourceError(
            f"{config} changed after the merge was planned; run the command again when nobody "
            "writes it"
        )
    adapter = open_adapter(Path(planned.path), Path(planned.adapter_base))
    return AdapterReader(adapter, compute, planned.base_stamps, planned.stamps)


def open_inputs(
    opened: contextlib.ExitStack,
    used: Sequence[PlannedInput],
    inputs: Sequence[PlannedInput],
    vocabulary: VocabularyLayout | None,
    compute: str,
) -> list[TensorReader]:
    """Readers of the inputs that are merged, with their rows as the vocabulary lays them out.

    Args:
        opened: closes the readers.
        used: those that are merged.
        inputs: all of the plan, in the order that numbers them.
        vocabulary: the plan's.
        compute: safetensors name of the dtype in which adapted and re-laid tensors are delivered.

    Raises:
        SourceError: a file is missing or not the one that was planned with.
    """

    def open_one(planned: PlannedInput) -> TensorReader:
        reader = open_input(planned, compute)
        opened.callback(reader.close)
        return reader

    if vocabulary is None:
        return [open_one(planned) for planned in used]
    every = {planned.name: open_one(planned) for planned in inputs}
    readers = []
    for planned in used:
        reader = every[planned.name]
        if planned.name in vocabulary.runs:
            runs, columns = vocabulary.runs[planned.name], vocabulary.columns[planned.name]
            everyone = list(every.values())
            reader = RelaidReader(reader, everyone, runs, vocabulary.means, columns, compute)
        readers.append(reader)
    return readers
