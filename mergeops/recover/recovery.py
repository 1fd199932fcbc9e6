"""From what a sharded training left to a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    FLOATS,
    GENERATION_CONFIG,
    INDEX,
    PROCESSOR_TEMPLATE,
    SINGLE,
    Checkpoint,
    CheckpointReader,
    Destination,
    TokenizerFile,
    combined_sha256,
    open_checkpoint,
    read_json,
    read_manifest,
    read_tensor,
    tokenizer_directory,
    word,
)
from mergeops.errors import MergeError, SourceError
from mergeops.progress import Progress
from mergeops.recover.finding import Leftover
from mergeops.recover.fitting import (
    TIED,
    fitted,
    found_whole,
    same_experts,
    without_tied_head,
)
from mergeops.recover.lora import adapter_settings, check_rank
from mergeops.recover.names import adapter_names
from mergeops.recover.sharded import ShardedModel
from mergeops.recover.sharded_reader import ShardedReader
from mergeops.recover.writing import shard_files, write_file, write_index

CONFIGS = ("", "huggingface")
"""Where trainers put config.json, below a checkpoint's directory; verl has a folder for it."""


@dataclass(frozen=True)
class Recovered:
    """What was found, and what became of it."""

    found: Leftover
    out: Path
    config_from: Path
    """The directory whose config, or adapter's config, it has."""
    tokenizer_from: Path | None
    notes: tuple[str, ...] = ()
    """What was not checked, or was left out."""
    sha256: str | None = None
    """Digest of the weights, as a source would have it; None of a dry run."""
    was_there: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "found": self.found.to_dict(),
            "out": str(self.out),
            "config_from": str(self.config_from),
            "tokenizer_from": None if self.tokenizer_from is None else str(self.tokenizer_from),
            "notes": list(self.notes),
            "sha256": self.sha256,
            "was_there": self.was_there,
        }


def recover(
    directory: Path,
    out: Path,
    *,
    base: Path | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Recovered:
    """Put together what a sharded training left, as a Hugging Face directory.

    The numbers are those that were saved, in their format; nothing is rounded.

    Args:
        directory: the checkpoint's, or the folder of the model inside it.
        out: a new directory; it gets its name when all is written.
        base: the model that was trained: its config and tokenizer are taken where the checkpoint
            has none, and names and shapes must be its.
        dry_run: check everything, write nothing.
        progress: where steps are shown.

    Raises:
        SourceError: there is nothing of the kind, it is not whole, or it is not the base's.
        MergeError: the output cannot be written, or a matrix is zero where the base's is not.
    """
    found, shards = found_whole(directory)
    if found.is_adapter:
        draft = _adapter(directory, found, shards, base)
    else:
        draft = _model(directory, found, shards, base)
    target = Destination(out, _key(draft.model, found.kind))
    was_there = target.is_done()
    result = Recovered(found, out, draft.config_from, draft.tokenizer_from, draft.notes)
    if dry_run:
        return dataclasses.replace(result, was_there=was_there)
    if not was_there:
        notes = _write(draft, target, found, progress or Progress(quiet=True))
        result = dataclasses.replace(result, notes=(*result.notes, *notes))
    return dataclasses.replace(result, sha256=_sha256(out), was_there=was_there)


@dataclass(frozen=True)
class _Draft:
    """What is to be written."""

    model: ShardedModel
    is_adapter: bool
    config_from: Path
    tokenizer_from: Path | None
    notes: tuple[str, ...]
    base: Checkpoint | None


def _adapter(directory: Path, found: Leftover, shards: ShardedModel, base: Path | None) -> _Draft:
    config_from = adapter_settings(directory, found, base)
    model = dataclasses.replace(shards, tensors=adapter_names(found.path, shards.tensors))
    check_rank(config_from / ADAPTER_CONFIG, model)
    notes: tuple[str, ...] = ()
    if left := len(shards.tensors) - len(model.tensors):
        notes = (f"{left} tensors of the base, which the adapter does not have, were left out",)
    return _Draft(model, True, config_from, tokenizer_directory([directory]), notes, None)


def _model(directory: Path, found: Leftover, shards: ShardedModel, base: Path | None) -> _Draft:
    checkpoint = _weights_of(base)
    own = [place / inner for place in (directory, found.path) for inner in CONFIGS]
    places = [*own, *([] if base is None else [base])]
    config_from = next((place for place in places if (place / CONFIG).is_file()), None)
    if config_from is None:
        raise SourceError(
            f"{directory} has no {CONFIG}; say which model was trained: `mergeops recover "
            f"{directory} OUT --base BASE`"
        )
    notes: list[str] = []
    model, is_tied = without_tied_head(shards, read_json(config_from / CONFIG), checkpoint)
    if is_tied:
        notes.append(f"{TIED[0]} is tied to {TIED[1]}, and is saved with it")
    if checkpoint is not None:
        model = fitted(found, model, checkpoint)
    elif found.kind == "slices":
        raise SourceError(
            f"{found.path} holds slices of tensors, and how large the whole ones are stands in no "
            f"file; name the model that was trained: `mergeops recover {directory} OUT --base BASE`"
        )
    else:
        notes.append("names and shapes were compared with no base; --base BASE does so")
    tokenizer_from = tokenizer_directory([*own, *([] if base is None else [base])])
    if tokenizer_from is None:
        notes.append("there is no tokenizer; --base BASE brings the base's")
    return _Draft(model, False, config_from, tokenizer_from, tuple(notes), checkpoint)


def _weights_of(base: Path | None) -> Checkpoint | None:
    """The base's headers; None of a directory that has only its config."""
    if base is None:
        return None
    if not base.is_dir():
        raise SourceError(f"--base {base} is not a directory; name the model that was trained")
    if (base / CONFIG).is_file() and not ((base / SINGLE).exists() or (base / INDEX).exists()):
        return None
    return open_checkpoint(base)


def _key(model: ShardedModel, kind: str) -> str:
    """Digest of what would be written."""
    layout = [[tensor.name, tensor.dtype, tensor.shape] for tensor in model.tensors.values()]
    files = {name: [seen.size, seen.mtime_ns] for name, seen in sorted(model.stamps.items())}
    return hashlib.sha256(json.dumps([kind, layout, files]).encode()).hexdigest()


def _write(
    draft: _Draft, target: Destination, found: Leftover, progress: Progress
) -> tuple[str, ...]:
    """Write it all; what the user should know of the numbers."""
    files = shard_files(draft.model.tensors)
    if draft.is_adapter:
        files = {ADAPTER: [tensor for group in files.values() for tensor in group]}
    needed = draft.model.bytes + (1 << 20)
    with target.opened(needed), ShardedReader(draft.model) as reader:
        for name, tensors in files.items():
            if name in target.finished:
                continue
            with progress.bar(f"writing {name}", is_bytes=True) as tick:
                written, zeros = write_file(target.partial / name, tensors, reader, tick)
            _check_zeros(draft, zeros)
            reader.check_unchanged()
            target.finish(name, written)
        small = _small_files(draft, target.partial, files)
        digests = {name: target.finished[name].sha256 for name in files}
        described = {
            "kind": found.kind,
            "step": found.step,
            "world_size": found.world_size,
            "key": target.key,
        }
        content = {"plan_digest": combined_sha256(digests), "recovered": described}
        target.close(content, [*files, *small])
    sums = {n: s for file in target.finished.values() for n, s in file.tensors.items()}
    return same_experts(draft.model.path, sums, draft.base)


def _check_zeros(draft: _Draft, zeros: Sequence[str]) -> None:
    """Refuse matrices of zeros that the base does not have: nobody wrote them."""
    if draft.is_adapter or draft.base is None:
        return
    with CheckpointReader(draft.base) as reader:
        for name in zeros:
            if read_tensor(reader, name).any():
                raise MergeError(
                    f"{draft.model.path}: tensor {name} is zero throughout, in the base it is not: "
                    "the weights were not gathered when it was saved; use an earlier checkpoint of "
                    "the run"
                )


def _small_files(draft: _Draft, out: Path, files: Mapping[str, Any]) -> list[str]:
    """Config, tokenizer and index, beside the weights."""
    wanted: dict[str, Path] = {}
    if draft.is_adapter:
        wanted[ADAPTER_CONFIG] = draft.config_from
    else:
        _write_config(draft, out)
        wanted[GENERATION_CONFIG] = draft.config_from
    if draft.tokenizer_from is not None:
        wanted |= dict.fromkeys((*TokenizerFile, PROCESSOR_TEMPLATE), draft.tokenizer_from)
    for name, place in wanted.items():
        if (place / name).is_file():
            shutil.copyfile(place / name, out / name)
    if len(files) > 1:
        write_index(out, files)
    return [entry.name for entry in out.iterdir() if entry.name not in files and _is_kept(entry)]


def _is_kept(entry: Path) -> bool:
    return entry.suffix != ".safetensors" and entry.name != Destination.JOURNAL


def _write_config(draft: _Draft, out: Path) -> None:
    """The config, which says the format that the weights are in."""
    config = read_json(draft.config_from / CONFIG)
    formats = {t.dtype for t in draft.model.tensors.values() if t.dtype in FLOATS}
    if len(formats) == 1:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = word(formats.pop())
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _sha256(out: Path) -> str:
    """Digest of the weights that are there, from the manifest."""
    manifest = read_manifest(out)
    assert manifest is not None
    return str(manifest["plan_digest"])
