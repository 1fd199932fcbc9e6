"""A plan's inputs: what a source's headers say, and a reader for its tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint.header import StoredTensor
from mergeops.checkpoint.layout import (
    ADAPTER_CONFIG,
    CONFIG,
    FileStamp,
    open_checkpoint,
    read_json,
    stamp,
)
from mergeops.checkpoint.lora import AdapterReader, open_adapter
from mergeops.checkpoint.reader import CheckpointReader, TensorReader
from mergeops.checkpoint.relaid import RelaidReader, RowTable
from mergeops.errors import SourceError

if TYPE_CHECKING:
    from mergeops.sources import Source
    from mergeops.tokens.layout import VocabularyLayout


@dataclass(frozen=True)
class PlannedInput:
    """One input of a plan: where it is, what it is, and what its files looked like."""

    name: str
    """The recipe's short name, or ``base``."""
    uri: str
    path: str
    sha256: str
    adapter_base: str | None = None
    """For a LoRA adapter: the directory of the model it applies to."""
    run_id: str | None = None
    model_id: str | None = None
    registered: str | None = None
    revision: str | None = None
    stamps: Mapping[str, FileStamp] = field(default_factory=dict)
    """Weight files in ``path``."""
    base_stamps: Mapping[str, FileStamp] = field(default_factory=dict)
    """Weight files in ``adapter_base``."""
    config_stamp: FileStamp | None = None
    """The adapter's config, which says how much of it is added."""

    @property
    def directories(self) -> list[Path]:
        """Where its small files may be: its own directory, then the adapter's base."""
        return [Path(self.path), *([Path(self.adapter_base)] if self.adapter_base else [])]

    def open(self, compute: str) -> TensorReader:
        """A reader of its tensors.

        Args:
            compute: safetensors name of the dtype in which adapted tensors are delivered.

        Raises:
            SourceError: a file is missing or not the one that was planned with.
        """
        if self.adapter_base is None:
            return CheckpointReader.open(Path(self.path), self.stamps)
        config = Path(self.path) / ADAPTER_CONFIG
        if stamp(config) != self.config_stamp:
            raise SourceError(
                f"{config} changed after the merge was planned; run the command again when nobody "
                "writes it"
            )
        adapter = open_adapter(Path(self.path), Path(self.adapter_base))
        return AdapterReader(adapter, compute, self.base_stamps, self.stamps)


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
        reader = planned.open(compute)
        opened.callback(reader.close)
        return reader

    if vocabulary is None:
        return [open_one(planned) for planned in used]
    every = {planned.name: open_one(planned) for planned in inputs}
    readers = []
    for planned in used:
        reader = every[planned.name]
        if planned.name in vocabulary.runs:
            table = RowTable(vocabulary.runs[planned.name], vocabulary.means)
            columns = vocabulary.columns[planned.name]
            reader = RelaidReader(reader, list(every.values()), table, columns, compute)
        readers.append(reader)
    return readers


def has_config(planned: PlannedInput) -> bool:
    """Whether the input has a config.json, be it its adapter's base's."""
    return any((directory / CONFIG).is_file() for directory in planned.directories)


def config_of(planned: PlannedInput) -> dict[str, Any]:
    """The input's config.json; empty where it has none.

    Raises:
        SourceError: it is no JSON object.
    """
    for directory in planned.directories:
        if (directory / CONFIG).is_file():
            return read_json(directory / CONFIG)
    return {}


def read_input(source: Source) -> tuple[PlannedInput, dict[str, StoredTensor]]:
    """Read a source's headers.

    Returns:
        What the plan keeps of it, and its tensors in the order of the data.

    Raises:
        SourceError: a file is missing, corrupt, of an unsupported kind, or changed since it was
            hashed.
    """
    config_stamp = None
    if source.adapter_base is None:
        checkpoint = open_checkpoint(source.path)
        tensors, stamps, base_stamps = checkpoint.tensors, checkpoint.stamps, {}
    else:
        adapter = open_adapter(source.path, source.adapter_base)
        tensors, stamps = adapter.tensors, adapter.adapter.stamps
        base_stamps = adapter.base.stamps
        config_stamp = stamp(source.path / ADAPTER_CONFIG)
    for file, hashed in source.stamps.items():
        if stamp(file) != hashed:
            raise SourceError(
                f"{file} changed after it was hashed; run the command again when nobody writes it"
            )
    planned = PlannedInput(
        name=source.name,
        uri=source.uri,
        path=str(source.path.absolute()),
        sha256=source.sha256,
        adapter_base=str(source.adapter_base.absolute()) if source.adapter_base else None,
        run_id=source.run_id,
        model_id=source.model_id,
        registered=source.registered,
        revision=source.revision,
        stamps=stamps,
        base_stamps=base_stamps,
        config_stamp=config_stamp,
    )
    return planned, tensors
