"""What ``MergeReadyCallback`` leaves behind, and adopt reads: tags of the run, and a note in each
checkpoint that says whose it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from mergeops.checkpoint import combined_sha256, replace_with, weight_files, weights_sha256
from mergeops.errors import SourceError
from mergeops.sources.hub import is_hub_name
from mergeops.sources.remote.directory import Directory, read_json

NOTE = "mergeops_run.json"
HASHED_BYTES = 2_000_000_000
"""A base of at most this size is hashed: seconds of a thread that training does not wait for."""

_SHA256 = re.compile(r"^[0-9a-f]{64}$")


class RunTags:
    """Names of the tags."""

    BASE = "mergeops.base"
    """The model that was trained: an absolute path, or a hub id with its commit."""
    BASE_SHA256 = "mergeops.base_sha256"
    """Digest of its weights, as ``weights_sha256``; only where it was cheap to get."""
    KIND = "mergeops.kind"
    """full, or the kind of the adapter: lora, dora, loha, ..."""
    OUTPUT_DIR = "mergeops.output_dir"
    """Absolute path of the trainer's output directory ..."""
    HOST = "mergeops.host"
    """... on this machine."""
    CHECKPOINTS = "mergeops.checkpoints"
    """Names of the checkpoints that are there, oldest first, with blanks between them."""
    BEST = "mergeops.best_checkpoint"
    """Name of the one with the best metric."""
    BEST_METRIC = "mergeops.best_metric"
    """That metric, as name=value."""


def write_note(checkpoint: Path, run_id: str, step: int, base: Mapping[str, str]) -> None:
    """Say in a checkpoint which run wrote it.

    Args:
        checkpoint: its directory.
        run_id: the run.
        step: the checkpoint's.
        base: ``RunTags.BASE`` and ``RunTags.BASE_SHA256``, as far as they are known.
    """
    said = {"run_id": run_id, "step": step}
    said |= {key.removeprefix("mergeops."): value for key, value in base.items()}
    with replace_with(checkpoint / NOTE) as temporary:
        temporary.write_text(json.dumps(said), encoding="utf-8")


def writer_of(directory: Directory) -> str | None:
    """The id of the run that says that it wrote a checkpoint; None where none does."""
    try:
        run_id = (read_json(directory, NOTE) or {}).get("run_id")
    except SourceError:
        return None
    return run_id if isinstance(run_id, str) else None


def noted_base(directory: Directory) -> str | None:
    """The URI of the model that was trained, as a checkpoint's note says it; None where it does
    not, or where that is no full model in reach."""
    try:
        said = (read_json(directory, NOTE) or {}).get("base")
    except SourceError:
        return None
    if not isinstance(said, str) or not said:
        return None
    if Path(said).is_absolute():
        return said if Path(said).is_dir() else None
    return f"hf://{said}" if is_hub_name(said) else None


def cheap_sha256(model: Path) -> str | None:
    """Digest of a full model's weights where it costs little: the hub's cache names its files by
    their sha256, and a small model is hashed. None elsewhere."""
    try:
        files = weight_files(model)
    except SourceError:
        return None
    blobs = {file.name: file.resolve().name for file in files}
    if all(_SHA256.match(blob) for blob in blobs.values()):
        return combined_sha256(blobs)
    if sum(file.stat().st_size for file in files) > HASHED_BYTES:
        return None
    return weights_sha256(model)
