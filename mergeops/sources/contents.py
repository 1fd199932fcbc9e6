"""What a directory holds: a full checkpoint, a LoRA adapter, or something else and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mergeops.errors import SourceError
from mergeops.sources.place import Entry, Place, read_json

Kind = Literal["full", "lora"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_ADAPTER = "adapter_model.bin"
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


def examine(place: Place, entries: list[Entry] | None = None) -> Contents:
    """Decide what a directory is; no file is opened."""
    entries = place.entries() if entries is None else entries
    names = {entry.name for entry in entries if not entry.is_dir}
    size = sum(e.size for e in entries if e.name.endswith(".safetensors") and not e.is_dir)
    if names & {WEIGHTS, INDEX}:
        if CONFIG in names:
            return Contents("full", size_bytes=size)
        return Contents(
            None,
            f"{place.shown} has weights but no config.json; copy the config.json of the model "
            "that was trained into it",
        )
    if ADAPTER_CONFIG in names and ADAPTER in names:
        return Contents("lora", size_bytes=size)
    pickled: Kind | None = None
    if ADAPTER_CONFIG in names:
        pickled = "lora" if PICKLED_ADAPTER in names else None
    elif CONFIG in names and names & {PICKLED, PICKLED_INDEX}:
        pickled = "full"
    return Contents(None, _instead(place, entries, names), pickled=pickled)


def check_whole(place: Place, kind: Kind) -> None:
    """Check that the weight files are there and whole, from headers and sizes.

    Raises:
        SourceError: a file is missing, truncated or corrupt.
    """
    path = place.local
    if path is None:
        return _check_sizes(place, kind)
    from mergeops.checkpoint.layout import open_checkpoint, read_headers

    if kind == "full":
        open_checkpoint(path)
    else:
        read_headers(path, [ADAPTER])


def find_checkpoint(place: Place) -> Place | None:
    """The checkpoint directory in what MLflow stores of a model: the root, ``model/``, ``peft/``
    or ``artifacts/NAME/``.

    Raises:
        SourceError: there are several.
    """
    entries = place.entries()
    if examine(place, entries).kind:
        return place
    folders = {entry.name for entry in entries if entry.is_dir}
    for name in INNER:
        if name not in folders:
            continue
        inner = place.inside(name)
        if name != "artifacts":
            if examine(inner).kind:
                return inner
            continue
        found = [
            inner.inside(entry.name)
            for entry in inner.entries()
            if entry.is_dir and examine(inner.inside(entry.name)).kind
        ]
        if len(found) > 1:
            raise SourceError(
                f"{place.shown} holds several checkpoints; name one: "
                + ", ".join(p.shown for p in found)
            )
        if found:
            return found[0]
    return None


def checkpoints_in(entries: list[Entry]) -> list[tuple[int, str]]:
    """The (step, name) of every ``checkpoint-N`` directory, oldest first."""
    return _numbered(entries, CHECKPOINT_NAME)


def epochs_in(entries: list[Entry]) -> list[tuple[int, str]]:
    """The (number, name) of every ``epoch_N`` directory (torchtune), oldest first."""
    return _numbered(entries, EPOCH_NAME)


def _numbered(entries: list[Entry], pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    matches = [pattern.match(entry.name) for entry in entries if entry.is_dir]
    return sorted((int(match.group(1)), match.group(0)) for match in matches if match)


def _instead(place: Place, entries: list[Entry], names: set[str]) -> str:
    if not entries:
        return f"{place.shown} is empty or does not exist"
    checkpoints = [name for _, name in checkpoints_in(entries)]
    if checkpoints:
        return (
            f"{place.shown} is a trainer's output directory with {_few(checkpoints)}; name one of "
            f"them: {place.shown}/{checkpoints[-1]}"
        )
    if ADAPTER_CONFIG in names:
        if "adapter_model.bin" in names:
            return (
                f"{place.shown} has adapter_model.bin, but mergeops reads safetensors only; save "
                "the adapter again with safe_serialization=True"
            )
        return f"{place.shown} has adapter_config.json but no {ADAPTER}: the save did not finish"
    pickled = sorted(
        n
        for n in names
        if n.startswith("pytorch_model") and n.endswith((".bin", ".bin.index.json"))
    )
    if pickled:
        return (
            f"{place.shown} has {pickled[0]}, but mergeops reads safetensors only; convert it once "
            "with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    if CONFIG in names:
        return f"{place.shown} has config.json but no {WEIGHTS}: the save did not finish"
    listed = _few(sorted(entry.name for entry in entries))
    return (
        f"{place.shown} holds no checkpoint, neither config.json with {WEIGHTS} nor "
        f"{ADAPTER_CONFIG} with {ADAPTER}; it has {listed}"
    )


def _check_sizes(place: Place, kind: Kind) -> None:
    # A store that lists sizes shows a missing or cut shard without a download.
    sizes = {entry.name: entry.size for entry in place.entries() if not entry.is_dir}
    index = read_json(place, INDEX) if kind == "full" and WEIGHTS not in sizes else None
    files = [ADAPTER if kind == "lora" else WEIGHTS]
    if index is not None:
        files = sorted({str(name) for name in (index.get("weight_map") or {}).values()})
    for file in files:
        if file not in sizes:
            raise SourceError(f"{place.shown}: {file} is missing, but {INDEX} names it")
    total = (index or {}).get("metadata", {}).get("total_size", 0)
    there = sum(sizes[file] for file in files)
    if there and isinstance(total, int) and there < total:
        raise SourceError(
            f"{place.shown} is truncated: its weights have {there} bytes, {INDEX} says {total}"
        )


def _few(names: list[str], n: int = 5) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[-n:]) + more
