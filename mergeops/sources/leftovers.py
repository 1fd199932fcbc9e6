"""What a sharded training left in a directory, be it on this machine or in a store.

On this machine ``recover`` looks into the files. In a store file names and sizes decide, and of
torch.distributed.checkpoint its index: what lies there is fetched, and looked into, when it is a
source of a merge.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeops.checkpoint import ADAPTER_CONFIG
from mergeops.errors import SourceError
from mergeops.recover import (
    INNER_FOLDERS,
    KINDS,
    adapter_settings,
    is_piece,
    kind_of,
    latest_step,
    leftover,
    step_of_name,
    world_size_of,
)
from mergeops.sources.remote.directory import SMALL_FILE_BYTES, Directory, DirectoryEntry

UNFINISHED = {
    "checkpoint-is-incomplete.txt": "transformers",
    ".incomplete": "NeMo Automodel",
}
"""Files that are there while a checkpoint is written, and whose they are."""
METADATA = ".metadata"
LATEST = "latest"


@dataclass(frozen=True)
class Pieces:
    """The weights of a sharded training, as a directory holds them."""

    place: Directory
    """Where the files lie: the directory, or one in it."""
    kind: str
    """A key of ``recover.KINDS``."""
    holds: Literal["full", "lora"]
    """What they make up."""
    step: int | None = None
    world_size: int | None = None
    size_bytes: int = 0
    """Of the tensors; in a store, of the files."""
    problem: str | None = None
    """What is missing, and the way out; None where all is there."""

    @property
    def told(self) -> str:
        """What it is, in words: FSDP (torch.distributed.checkpoint), 2 processes."""
        count = "" if self.world_size is None else f", {self.world_size} processes"
        return f"{KINDS[self.kind][0]}{count}"


def unfinished(directory: Directory, entries: Sequence[DirectoryEntry]) -> str | None:
    """Which marker says that a save did not finish; None where none does."""
    for entry in entries:
        if entry.name in UNFINISHED:
            return (
                f"{directory.shown} holds {entry.name}, which {UNFINISHED[entry.name]} removes "
                "when a save is complete: the save did not finish; use another checkpoint"
            )
    return None


def pieces_in(directory: Directory, entries: Sequence[DirectoryEntry]) -> Pieces | None:
    """What a sharded training left in a directory, whole or not; None where there is nothing."""
    if directory.local is not None:
        return _here(directory, directory.local)
    return _in_store(directory, entries)


def _here(directory: Directory, path: Path) -> Pieces | None:
    left = leftover(path)
    if left is None:
        return None
    problem = left.problem
    if left.is_adapter:
        try:
            adapter_settings(path, left)
        except SourceError as error:
            problem = str(error)
    below = os.path.relpath(left.path, path)
    place = directory if below == "." else directory.inside(below)
    return Pieces(
        place,
        left.kind,
        "lora" if left.is_adapter else "full",
        left.step,
        left.world_size,
        0 if left.shards is None else left.shards.bytes,
        problem,
    )


def _in_store(directory: Directory, entries: Sequence[DirectoryEntry]) -> Pieces | None:
    folders = {entry.name for entry in entries if entry.is_dir}
    inside = [name for name in INNER_FOLDERS if name in folders]
    steps = {name: step for name in folders if (step := latest_step(name)) is not None}
    latest = None
    if any(entry.name == LATEST and not entry.is_dir for entry in entries):
        latest = (directory.read(LATEST) or b"")[:200].decode(errors="replace").strip()
        if latest not in folders:
            missing = f"{directory.shown}/{LATEST} names {latest!r}, which is not there"
            return Pieces(directory, "zero", "full", problem=missing) if steps else None
        inside = [latest]
    elif steps:
        inside.append(max(steps, key=lambda name: steps[name]))
    for place in (directory, *map(directory.inside, inside)):
        files = entries if place is directory else place.entries()
        sizes = {entry.name: entry.size for entry in files if not entry.is_dir}
        kind = kind_of(sizes)
        if kind is None:
            continue
        problem = unfinished(place, files)
        if latest is None and place is not directory and kind == "zero":
            problem = (
                f"{directory.shown} has no file {LATEST}, which DeepSpeed writes last: the save "
                f"may not have finished; if it did, name {place.shown} itself"
            )
        has_settings = any(entry.name == ADAPTER_CONFIG for entry in (*entries, *files))
        return _stored(directory, place, kind, sizes, has_settings, problem)
    return None


def _stored(
    directory: Directory,
    place: Directory,
    kind: str,
    sizes: dict[str, int],
    has_settings: bool,
    problem: str | None,
) -> Pieces:
    names = (place.shown.rpartition("/")[2], directory.shown.rpartition("/")[2])
    step = next((n for name in names if (n := step_of_name(name)) is not None), None)
    holds: Literal["full", "lora"] = "lora" if has_settings else "full"
    if problem is None and kind == "dcp":
        holds, problem = _from_index(place, sizes, has_settings)
    size = sum(size for name, size in sizes.items() if is_piece(name))
    return Pieces(place, kind, holds, step, world_size_of(kind, sizes), size, problem)


def _from_index(
    place: Directory, sizes: dict[str, int], has_settings: bool
) -> tuple[Literal["full", "lora"], str | None]:
    """Hold a store's list of files against the index of torch.distributed.checkpoint; no payload is
    fetched."""
    if sizes.get(METADATA, 0) > SMALL_FILE_BYTES or 0 in sizes.values():
        return ("lora" if has_settings else "full"), None
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        # Files of the listed sizes without content: only the index is read.
        for name, size in sizes.items():
            if is_piece(name):
                with open(Path(folder) / name, "wb") as file:
                    file.truncate(size)
        if METADATA in sizes:
            (Path(folder) / METADATA).write_bytes(place.read(METADATA) or b"")
        left = leftover(Path(folder))
        if left is None:
            return "full", None
        problem = None if left.problem is None else left.problem.replace(folder, place.shown)
    if left.is_adapter and not has_settings and problem is None:
        problem = (
            f"{place.shown} holds the tensors of a LoRA adapter, but no {ADAPTER_CONFIG} lies "
            "beside it; put one with the settings of the training there"
        )
    return ("lora" if left.is_adapter else "full"), problem
