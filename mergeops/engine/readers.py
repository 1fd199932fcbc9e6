"""Readers of a plan's inputs, checked to be the files that were planned with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mergeops.adapters import AdapterReader, open_adapter
from mergeops.checkpoint import (
    ADAPTER_CONFIG,
    CheckpointReader,
    HashAlong,
    RelaidReader,
    RenamedReader,
    TensorReader,
    stamp,
)
from mergeops.errors import SourceError
from mergeops.planning import PlannedInput, VocabularyLayout
from mergeops.recover import ShardedReader, is_sharded, open_on_base


def open_input(
    planned: PlannedInput, compute: str, hashes: HashAlong | None = None
) -> TensorReader:
    """A reader of an input's tensors, by the names that they have in the result.

    Args:
        planned: the input.
        compute: safetensors name of the dtype in which adapted tensors are delivered.
        hashes: what hashes files while they are read.

    Raises:
        SourceError: a file is missing or not the one that was planned with.
    """
    reader = _open(planned, compute, hashes)
    if planned.renamed or planned.cut:
        return RenamedReader(reader, planned.renamed, planned.cut)
    return reader


def _open(planned: PlannedInput, compute: str, hashes: HashAlong | None) -> TensorReader:
    if planned.adapter_base is None:
        return CheckpointReader.open(Path(planned.path), planned.stamps, hashes)
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


class OpenInputs:
    """Readers of inputs, each opened when a plan first reads it, for any number of plans.

    Args:
        hashes: what hashes files while they are read.
    """

    def __init__(self, hashes: HashAlong | None = None) -> None:
        self._hashes = hashes
        self._opened = contextlib.ExitStack()
        self._readers: dict[str, TensorReader] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        self._readers.clear()
        self._opened.close()

    def readers(
        self,
        used: Sequence[PlannedInput],
        inputs: Sequence[PlannedInput],
        vocabulary: VocabularyLayout | None,
        compute: str,
    ) -> list[TensorReader]:
        """Readers of the inputs that are merged, with their rows as the vocabulary lays them out.

        Args:
            used: those that are merged.
            inputs: all of the plan, in the order that numbers them.
            vocabulary: the plan's.
            compute: safetensors name of the dtype in which adapted and re-laid tensors are
                delivered.

        Raises:
            SourceError: a file is missing or not the one that was planned with.
        """
        if vocabulary is None:
            return [self._reader(planned, compute) for planned in used]
        every = {planned.name: self._reader(planned, compute) for planned in inputs}
        readers = []
        for planned in used:
            reader = every[planned.name]
            if planned.name in vocabulary.runs:
                runs, columns = vocabulary.runs[planned.name], vocabulary.columns[planned.name]
                everyone = list(every.values())
                reader = RelaidReader(reader, everyone, runs, vocabulary.means, columns, compute)
            readers.append(reader)
        return readers

    def _reader(self, planned: PlannedInput, compute: str) -> TensorReader:
        # Everything that decides what is read, the files' stamps among it.
        key = f"{compute} {planned!r}"
        if key not in self._readers:
            reader = self._readers[key] = open_input(planned, compute, self._hashes)
            self._opened.callback(reader.close)
        return self._readers[key]
