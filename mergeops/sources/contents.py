"""What a directory holds: a full checkpoint, a LoRA adapter, or something else and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeops.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    PICKLED,
    PICKLED_ADAPTER,
    PICKLED_INDEX,
    SINGLE,
    gguf_instead,
    gguf_models,
    open_checkpoint,
    read_headers,
    recognise,
)
from mergeops.errors import SourceError
from mergeops.sources.leftovers import Pieces, pieces_in, unfinished
from mergeops.sources.remote.directory import Directory, DirectoryEntry, read_json

Kind = Literal["full", "lora"]

_TORCHTUNES = "adapter_model.pt"
"""The adapter in torchtune's own names; torchtune writes PEFT's adapter and, of the same training,
the model with it merged in beside it."""

# What PEFT and its trainers call a module that they have wrapped.
_WRAPPED = re.compile(r"\.(base_layer|lora_[AB]|modules_to_save|original_module)\.")
_STEP = re.compile(
    r"^(?:checkpoint[-_]|global_step[-_]?|(?:dist[-_])?step[-_]|iter[-_]|epoch[-_]\d+[-_]step[-_])(\d+)$"
)
_EPOCH = re.compile(r"^(?:dist[-_])?epoch[-_](\d+)$")
_PICKLED_SHARD = re.compile(r"^pytorch_model(-\d+-of-\d+)?\.bin$")
_VARIANT = re.compile(r"^model\.\w+\.safetensors$")
"""What transformers writes with ``variant``, e.g. ``model.fp16.safetensors``."""


@dataclass(frozen=True)
class Contents:
    """What a directory is."""

    kind: Kind | None
    problem: str | None = None
    """Where it is neither: what is there instead, and the way out."""
    size_bytes: int = 0
    """Of its safetensors files; 0 where the store does not say."""
    convertible: Kind | None = None
    """What it is once its weights, pickled or in a GGUF file, are converted; kind is None then."""
    gguf: str | None = None
    """The GGUF file that is converted."""
    has_weights: bool = False
    """Where it is neither: whether there are weights all the same, which ``problem`` is about."""
    pieces: Pieces | None = None
    """What a sharded training left; kind is None then."""
    has_adapter: bool = False
    """Whether a full checkpoint has an adapter beside it that is not merged into it."""

    @property
    def sharded(self) -> Kind | None:
        """What whole pieces make up: a full model, which is read with its base, or an adapter."""
        return None if self.pieces is None or self.pieces.problem else self.pieces.holds

    @property
    def usable(self) -> Kind | None:
        """What a merge can take it as."""
        return self.kind or self.sharded


def examine(directory: Directory, entries: list[DirectoryEntry] | None = None) -> Contents:
    """Decide what a directory is; only what a sharded training left is opened."""
    entries = directory.entries() if entries is None else entries
    if (marked := unfinished(directory, entries)) is not None:
        return Contents(None, marked, has_weights=True)
    names = {entry.name for entry in entries if not entry.is_dir}
    size = sum(e.size for e in entries if e.name.endswith(".safetensors") and not e.is_dir)
    if names & {SINGLE, INDEX}:
        if CONFIG in names:
            beside = ADAPTER_CONFIG in names and bool(names & {ADAPTER, PICKLED_ADAPTER})
            has_adapter = beside and _TORCHTUNES not in names
            return Contents("full", size_bytes=size, has_adapter=has_adapter)
        return Contents(
            None,
            f"{directory.shown} has weights but no config.json; copy the config.json of the model "
            "that was trained into it",
            has_weights=True,
        )
    if ADAPTER_CONFIG in names and ADAPTER in names:
        return Contents("lora", size_bytes=size)
    if ADAPTER_CONFIG not in names and not names & {PICKLED, PICKLED_INDEX}:
        ggufs = gguf_models(names)
        if len(ggufs) == 1:
            return in_gguf(directory, ggufs[0])
    pickled: Kind | None = None
    if ADAPTER_CONFIG in names:
        pickled = "lora" if PICKLED_ADAPTER in names else None
    elif CONFIG in names and names & {PICKLED, PICKLED_INDEX}:
        pickled = "full"
    if pickled is None and (left := _in_pieces(directory, entries)) is not None:
        return left
    problem, has_weights = _instead(directory, entries, names)
    return Contents(None, problem, convertible=pickled, has_weights=has_weights)


def in_gguf(directory: Directory, name: str) -> Contents:
    """A directory of which a GGUF file is meant; only on this machine it is converted."""
    problem = f"{directory.shown} {gguf_instead([name])}"
    return Contents(None, problem, convertible="full", gguf=name, has_weights=True)


def _in_pieces(directory: Directory, entries: list[DirectoryEntry]) -> Contents | None:
    """What a sharded training left."""
    left = pieces_in(directory, entries)
    if left is None:
        return None
    shown = directory.shown
    problem = left.problem or (
        f"{shown} holds what a sharded training left, {left.told}; put it together: "
        f"`mergeops recover {shown} OUT --base BASE`, with BASE the model that was trained"
    )
    return Contents(None, problem, size_bytes=left.size_bytes, pieces=left, has_weights=True)


@dataclass(frozen=True)
class Location:
    """Where a URI leads: a directory, and what MLflow or the hub know of it."""

    directory: Directory
    contents: Contents
    run_id: str | None = None
    model_id: str | None = None
    registered: str | None = None
    """NAME/VERSION."""
    revision: str | None = None
    """Commit of a hub repository."""
    companions: tuple[Directory, ...] = ()
    """Directories beside it with files that belong to it: tokenizer, processor."""
    base: str | None = None
    """The model that an adapter applies to, where MLflow noted it ..."""
    base_revision: str | None = None
    """... and its commit."""

    @classmethod
    def at(cls, directory: Directory, revision: str | None = None) -> Location:
        """A directory with what it holds."""
        return cls(directory, examine(directory), revision=revision)


def check_whole(directory: Directory, kind: Kind | None) -> None:
    """Check that the weight files are there and whole, from headers and sizes.

    Args:
        directory: the checkpoint.
        kind: as ``Contents.kind``; pieces, of which it is None, are checked when they are found.

    Raises:
        SourceError: a file is missing, truncated or corrupt, or holds a model inside PEFT.
    """
    if kind is None:
        return
    if directory.local is None:
        _check_sizes(directory, kind)
    elif kind == "full":
        check_unwrapped(directory.local)
    else:
        read_headers(directory.local, [ADAPTER])


def check_unwrapped(path: Path) -> None:
    """Refuse a full model whose names are those of modules inside PEFT.

    Raises:
        SourceError: they are: transformers would leave these parameters random; or a weight file is
            missing, truncated or corrupt.
    """
    wrapped = [name for name in open_checkpoint(path).tensors if _WRAPPED.search(f".{name}.")]
    if not wrapped:
        return
    beside = path.parent / "peft"
    way = "name the directory that PEFT's save_pretrained wrote (adapter_config.json and weights)"
    if (beside / ADAPTER).is_file():
        way = f"name the adapter that was saved beside it: {beside}"
    raise SourceError(
        f"{path} holds {len(wrapped)} tensors of modules that PEFT had wrapped, such as "
        f"{wrapped[0]}, and no model has such parameters: loaded, they would be random; {way}"
    )


def step_of(path: str) -> tuple[int | None, int]:
    """The optimiser step that the last numbered part of a path says, and the order of such saves:
    the step, or the number of the epoch; -1 where no part says one."""
    for name in reversed(path.split("/")):
        if match := _STEP.match(name):
            return int(match[1]), int(match[1])
        if match := _EPOCH.match(name):
            return None, int(match[1])
    return None, -1


def _instead(
    directory: Directory, entries: list[DirectoryEntry], names: set[str]
) -> tuple[str, bool]:
    """What is there in place of a checkpoint and the way out, and whether it is weights."""
    shown = directory.shown
    if not entries:
        return f"{shown} is empty or does not exist", False
    numbered = [e.name for e in entries if e.is_dir and step_of(e.name)[1] >= 0]
    checkpoints = sorted(numbered, key=lambda name: step_of(name)[1])
    if checkpoints:
        return (
            f"{shown} is a trainer's output directory with {_few(checkpoints)}; name one of "
            f"them: {shown}/{checkpoints[-1]}"
        ), False
    if ADAPTER_CONFIG in names and PICKLED_ADAPTER in names:
        return (
            f"{shown} has {PICKLED_ADAPTER}, but mergeops reads safetensors only; save "
            "the adapter again with safe_serialization=True"
        ), True
    pickled = sorted(n for n in names if n == PICKLED_INDEX or _PICKLED_SHARD.match(n))
    if pickled:
        return (
            f"{shown} has {pickled[0]}, but mergeops reads safetensors only; convert it once "
            "with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        ), True
    if told := gguf_instead(names):
        return f"{shown} {told}", True
    listed = _few(sorted(entry.name for entry in entries))
    if ADAPTER_CONFIG in names:
        return (
            f"{shown} has {ADAPTER_CONFIG} but no {ADAPTER}; it has {listed}: the save did not "
            "finish, or the weights lie elsewhere"
        ), False
    named = sorted(n for n in names if _VARIANT.match(n))
    if any(name.startswith("consolidated.") and name.endswith(".safetensors") for name in names):
        return (
            f"{shown} has Mistral's own layout (consolidated.safetensors, params.json); take "
            f"{CONFIG}, {SINGLE} or its shards, and the tokenizer of the same repository, or "
            "convert it with convert_mistral_weights_to_hf.py of the repository of transformers"
        ), True
    if CONFIG in names and named:
        return (
            f"{shown} has {', '.join(named)}, a variant of {SINGLE}, which is what is read: rename "
            f"the one that is meant to {SINGLE}"
        ), True
    if CONFIG in names:
        return (
            f"{shown} has {CONFIG} but no {SINGLE}; it has {listed}: the save did not finish, or "
            "the weights lie elsewhere"
        ), False
    return (
        f"{shown} holds no checkpoint, neither config.json with {SINGLE} nor "
        f"{ADAPTER_CONFIG} with {ADAPTER}; it has {listed}"
    ), False


def _check_sizes(directory: Directory, kind: Kind) -> None:
    # A store that lists sizes shows a missing or cut shard without a download.
    sizes = {entry.name: entry.size for entry in directory.entries() if not entry.is_dir}
    index = read_json(directory, INDEX) if kind == "full" and SINGLE not in sizes else None
    files = [ADAPTER if kind == "lora" else SINGLE]
    if index is not None:
        files = sorted({str(name) for name in (index.get("weight_map") or {}).values()})
    for file in files:
        if file not in sizes:
            raise SourceError(
                f"{directory.shown}: {file} is missing, but {INDEX} names it; copy it there, or "
                "take another checkpoint"
            )
    if kind == "full":
        _check_codes(directory, [str(name) for name in (index or {}).get("weight_map") or {}])
    total = (index or {}).get("metadata", {}).get("total_size", 0)
    listed = sum(sizes[file] for file in files)
    if listed and isinstance(total, int) and listed < total:
        raise SourceError(
            f"{directory.shown} is truncated: its weights have {listed} bytes, {INDEX} says {total}"
        )


def _check_codes(directory: Directory, tensors: list[str]) -> None:
    """Refuse codes that are not read, by what the store says before a download."""
    config = read_json(directory, CONFIG) or {}
    found = recognise(config, dict.fromkeys(tensors, "")) if tensors else None
    if found is not None and not found.is_readable:
        raise SourceError(
            f"{directory.shown} is quantised, {found.told}: its codes are no numbers that can be "
            f"merged; {found.way_out}"
        )


def _few(names: list[str], n: int = 5) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[-n:]) + more
