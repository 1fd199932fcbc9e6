"""What a directory holds: a full checkpoint, a LoRA adapter, or something else and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    open_checkpoint,
    read_headers,
)
from mergeops.errors import SourceError
from mergeops.sources.remote.directory import Directory, DirectoryEntry, read_json

Kind = Literal["full", "lora"]

CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")
EPOCH_NAME = re.compile(r"^epoch_(\d+)$")
# Where trainers and MLflow's flavours put the directory that matters, in order.
INNER = ("model", "peft", "artifacts")


@dataclass(frozen=True)
class Contents:
    """What a directory is, decided from its names alone."""

    kind: Kind | None
    problem: str | None = None
    """Where it is neither: what is there instead, and the way out."""
    size_bytes: int = 0
    """Of its safetensors files; 0 where the store does not say."""
    pickled: Kind | None = None
    """What it would be if its weights were not pickled; kind is None then."""


def examine(directory: Directory, entries: list[DirectoryEntry] | None = None) -> Contents:
    """Decide what a directory is; no file is opened."""
    entries = directory.entries() if entries is None else entries
    names = {entry.name for entry in entries if not entry.is_dir}
    size = sum(e.size for e in entries if e.name.endswith(".safetensors") and not e.is_dir)
    if names & {SINGLE, INDEX}:
        if CONFIG in names:
            return Contents("full", size_bytes=size)
        return Contents(
            None,
            f"{directory.shown} has weights but no config.json; copy the config.json of the model "
            "that was trained into it",
        )
    if ADAPTER_CONFIG in names and ADAPTER in names:
        return Contents("lora", size_bytes=size)
    pickled: Kind | None = None
    if ADAPTER_CONFIG in names:
        pickled = "lora" if PICKLED_ADAPTER in names else None
    elif CONFIG in names and names & {PICKLED, PICKLED_INDEX}:
        pickled = "full"
    return Contents(None, _instead(directory, entries, names), pickled=pickled)


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

    @classmethod
    def at(cls, directory: Directory, revision: str | None = None) -> Location:
        """A directory with what it holds."""
        return cls(directory, examine(directory), revision=revision)


def check_whole(directory: Directory, kind: Kind) -> None:
    """Check that the weight files are there and whole, from headers and sizes.

    Raises:
        SourceError: a file is missing, truncated or corrupt.
    """
    if directory.local is None:
        _check_sizes(directory, kind)
    elif kind == "full":
        open_checkpoint(directory.local)
    else:
        read_headers(directory.local, [ADAPTER])


def find_checkpoint(directory: Directory) -> Location | None:
    """The checkpoint in what MLflow stores of a model: the root, ``model/``, ``peft/`` or
    ``artifacts/NAME/``.

    Raises:
        SourceError: there are several.
    """
    entries = directory.entries()
    contents = examine(directory, entries)
    if contents.kind:
        return Location(directory, contents)
    folders = {entry.name for entry in entries if entry.is_dir}
    for name in INNER:
        if name not in folders:
            continue
        inner = directory.inside(name)
        candidates = [inner]
        if name == "artifacts":
            candidates = [inner.inside(entry.name) for entry in inner.entries() if entry.is_dir]
        checkpoints = [Location.at(candidate) for candidate in candidates]
        checkpoints = [location for location in checkpoints if location.contents.kind]
        if len(checkpoints) > 1:
            raise SourceError(
                f"{directory.shown} holds several checkpoints; name one: "
                + ", ".join(location.directory.shown for location in checkpoints)
            )
        if checkpoints:
            return checkpoints[0]
    return None


def checkpoints_in(entries: list[DirectoryEntry]) -> list[tuple[int, str]]:
    """The (step, name) of every ``checkpoint-N`` directory, oldest first."""
    return _numbered(entries, CHECKPOINT_NAME)


def epochs_in(entries: list[DirectoryEntry]) -> list[tuple[int, str]]:
    """The (number, name) of every ``epoch_N`` directory (torchtune), oldest first."""
    return _numbered(entries, EPOCH_NAME)


def _numbered(entries: list[DirectoryEntry], pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    matches = [pattern.match(entry.name) for entry in entries if entry.is_dir]
    return sorted((int(match.group(1)), match.group(0)) for match in matches if match)


def _instead(directory: Directory, entries: list[DirectoryEntry], names: set[str]) -> str:
    shown = directory.shown
    if not entries:
        return f"{shown} is empty or does not exist"
    checkpoints = [name for _, name in checkpoints_in(entries)]
    if checkpoints:
        return (
            f"{shown} is a trainer's output directory with {_few(checkpoints)}; name one of "
            f"them: {shown}/{checkpoints[-1]}"
        )
    if ADAPTER_CONFIG in names:
        if PICKLED_ADAPTER in names:
            return (
                f"{shown} has {PICKLED_ADAPTER}, but mergeops reads safetensors only; save "
                "the adapter again with safe_serialization=True"
            )
        return f"{shown} has adapter_config.json but no {ADAPTER}: the save did not finish"
    ends = (".bin", ".bin.index.json")
    pickled = sorted(n for n in names if n.startswith("pytorch_model") and n.endswith(ends))
    if pickled:
        return (
            f"{shown} has {pickled[0]}, but mergeops reads safetensors only; convert it once "
            "with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    if told := gguf_instead(names):
        return f"{shown} {told}"
    if CONFIG in names:
        return f"{shown} has config.json but no {SINGLE}: the save did not finish"
    listed = _few(sorted(entry.name for entry in entries))
    return (
        f"{shown} holds no checkpoint, neither config.json with {SINGLE} nor "
        f"{ADAPTER_CONFIG} with {ADAPTER}; it has {listed}"
    )


def _check_sizes(directory: Directory, kind: Kind) -> None:
    # A store that lists sizes shows a missing or cut shard without a download.
    sizes = {entry.name: entry.size for entry in directory.entries() if not entry.is_dir}
    index = read_json(directory, INDEX) if kind == "full" and SINGLE not in sizes else None
    files = [ADAPTER if kind == "lora" else SINGLE]
    if index is not None:
        files = sorted({str(name) for name in (index.get("weight_map") or {}).values()})
    for file in files:
        if file not in sizes:
            raise SourceError(f"{directory.shown}: {file} is missing, but {INDEX} names it")
    total = (index or {}).get("metadata", {}).get("total_size", 0)
    listed = sum(sizes[file] for file in files)
    if listed and isinstance(total, int) and listed < total:
        raise SourceError(
            f"{directory.shown} is truncated: its weights have {listed} bytes, {INDEX} says {total}"
        )


def _few(names: list[str], n: int = 5) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[-n:]) + more
