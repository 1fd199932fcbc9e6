"""A plan's inputs: what a source's headers say, and a reader for its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergeops.checkpoint.header import StoredTensor
from mergeops.checkpoint.layout import ADAPTER_CONFIG, FileStamp, open_checkpoint, stamp
from mergeops.checkpoint.lora import AdapterReader, open_adapter
from mergeops.checkpoint.reader import CheckpointReader, TensorReader
from mergeops.errors import SourceError

if TYPE_CHECKING:
    from mergeops.sources import Source


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

    def open(self, compute: torch.dtype) -> TensorReader:
        """A reader of its tensors.

        Args:
            compute: dtype in which adapted tensors are delivered.

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


def read_input(source: Source) -> tuple[PlannedInput, dict[str, StoredTensor]]:
    """Read a source's headers.

    Returns:
        What the plan keeps of it, and its tensors in the order of the data.

    Raises:
        SourceError: a file is missing, corrupt or of an unsupported kind.
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
