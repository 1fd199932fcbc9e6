"""A plan's inputs: what the headers and configs of a source say."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.adapters import open_adapter
from mergeops.architectures import read_fit
from mergeops.checkpoint import (
    ADAPTER_CONFIG,
    CONFIG,
    FileStamp,
    StoredTensor,
    TensorCut,
    check_filled,
    is_beside_numbers,
    open_checkpoint,
    read_json,
    stamp,
)
from mergeops.errors import SourceError
from mergeops.planning.architecture import changed
from mergeops.recover import is_sharded, open_on_base
from mergeops.sources import Source


@dataclass(frozen=True, kw_only=True)
class PlannedInput:
    """One input of a plan: where it is, what it is, and what its files looked like."""

    name: str
    """The recipe's short name, or ``base``."""
    uri: str
    path: str
    sha256: str
    """As ``Source.sha256``; empty until it is known."""
    adapter_base: str | None = None
    """For a LoRA adapter: the directory of the model it applies to; for what a sharded training
    left: of the model that was trained."""
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
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    """What an adapter changes in its base's config.json, e.g. the size of the vocabulary."""
    notes: tuple[str, ...] = ()
    """What the user should know of it."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Name in the result -> name on disk, of the tensors whose names differ."""
    cut: Mapping[str, TensorCut] = field(default_factory=dict)
    """Name in the result -> the range on disk that it is, of experts that lie in one tensor."""

    @property
    def files(self) -> list[Any]:
        """Which very files it is, as JSON types: equal ones hold equal bytes."""
        return [
            os.path.realpath(self.path),
            {name: dataclasses.astuple(stamp) for name, stamp in self.stamps.items()},
            os.path.realpath(self.adapter_base) if self.adapter_base else None,
            {name: dataclasses.astuple(stamp) for name, stamp in self.base_stamps.items()},
            dataclasses.astuple(self.config_stamp) if self.config_stamp else None,
        ]

    @property
    def directories(self) -> list[Path]:
        """Where its small files may be: its own directory, then the adapter's base."""
        return [Path(self.path), *([Path(self.adapter_base)] if self.adapter_base else [])]


def has_config(planned: PlannedInput) -> bool:
    """Whether the input has a config.json, be it its adapter's base's."""
    return any((directory / CONFIG).is_file() for directory in planned.directories)


def config_of(planned: PlannedInput) -> dict[str, Any]:
    """The input's config.json, with what its adapter changes; empty where it has none.

    Raises:
        SourceError: as ``read_config_file``.
    """
    configs = (directory / CONFIG for directory in planned.directories)
    config = next((read_config_file(config) for config in configs if config.is_file()), {})
    return changed(config, planned.config_changes)


def read_config_file(path: Path) -> dict[str, Any]:
    """A config.json or generation_config.json.

    Infinity, which is no JSON but which transformers 4 wrote, becomes what transformers 5 writes.

    Raises:
        SourceError: it is no JSON object, or holds what no JSON can: NaN, or half a character.
    """
    content: dict[str, Any] = _checked(read_json(path), path, "")
    return content


def _checked(value: Any, path: Path, key: str) -> Any:
    if isinstance(value, dict):
        return {
            _checked(name, path, f"{key} a key".strip()): _checked(
                inner, path, f"{key}.{name}".strip(".")
            )
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_checked(inner, path, f"{key}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, float) and math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, float) and math.isnan(value):
        raise SourceError(f"{path}: {key} is NaN, which is no number; write what it shall be")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise SourceError(
            f"{path}: {key} holds half of a surrogate pair ({value[:40]!a}), which is no "
            "character; write the whole one or take it out"
        )
    return value


def read_input(source: Source) -> tuple[PlannedInput, dict[str, StoredTensor]]:
    """Read a source's headers.

    Returns:
        What the plan keeps of it, and its tensors in the order of the data.

    Raises:
        SourceError: a file is missing, corrupt, of an unsupported kind, or changed since it was
            hashed.
    """
    config_stamp = None
    config_changes: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    base_stamps: dict[str, FileStamp] = {}
    if source.adapter_base is None:
        checkpoint = open_checkpoint(source.path)
        tensors, stamps = checkpoint.tensors, checkpoint.stamps
        check_filled(source.path, tensors)
        notes = _about_others(source, stamps)
    elif is_sharded(source.path):
        model = open_on_base(source.path, source.adapter_base)
        tensors, stamps = model.stored, dict(model.stamps)
    else:
        adapter = open_adapter(source.path, source.adapter_base)
        tensors, stamps = adapter.tensors, adapter.adapter.stamps
        base_stamps = adapter.base.stamps
        config_stamp = stamp(source.path / ADAPTER_CONFIG)
        config_changes, notes = adapter.config_changes, adapter.notes
    for file, hashed in source.stamps.items():
        if stamp(file) != hashed:
            raise SourceError(
                f"{file} changed after it was {'hashed' if source.sha256 else 'found'}; run the "
                "command again when nobody writes it"
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
        config_changes=config_changes,
        notes=notes,
    )
    return _without_scales(planned, tensors)


def _without_scales(
    planned: PlannedInput, tensors: dict[str, StoredTensor]
) -> tuple[PlannedInput, dict[str, StoredTensor]]:
    """Plain weights without the scales of activations that quantising left beside them."""
    called = [name for name in tensors if is_beside_numbers(name)]
    if not called:
        return planned, tensors
    config = config_of(planned)
    shapes = {name: stored.shape for name, stored in tensors.items()}
    fit = read_fit(config, shapes) if config else None
    left = [name for name in called if fit is not None and name in fit.unexpected]
    if not left:
        return planned, tensors
    more = ", ..." if len(left) > 1 else ""
    told = (
        f"{len(left)} scale(s) of activations are left out, which quantising put beside the "
        f"weights of {planned.name}: {left[0]}{more}"
    )
    kept = {name: stored for name, stored in tensors.items() if name not in left}
    return dataclasses.replace(planned, notes=(*planned.notes, told)), kept


def _about_others(source: Source, stamps: Mapping[str, FileStamp]) -> tuple[str, ...]:
    """Weights that lie beside the model and are no part of it, e.g. the head of a reward model."""
    found = [file.name for file in sorted(source.path.glob("*.safetensors"))]
    # Mistral's own format of the same weights.
    others = [n for n in found if n not in stamps and not n.startswith("consolidated")]
    if not others:
        return ()
    return (
        f"{source.name} has {', '.join(others)} beside its model, which transformers does not load "
        "with it: the merge is without",
    )
