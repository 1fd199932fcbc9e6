"""What a sharded training left in a directory: decided by names, then by what the files say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import ADAPTER, INDEX, SINGLE, SLICES_NAME
from mergeops.errors import SourceError
from mergeops.recover.dcp import METADATA, SUFFIX, open_dcp
from mergeops.recover.process_files import NAME as PROCESS_FILE
from mergeops.recover.process_files import open_process_files
from mergeops.recover.sharded import ShardedModel
from mergeops.recover.sliced_files import open_slices
from mergeops.recover.zero import (
    EXPERT,
    LATEST,
    LATEST_UNIVERSAL,
    MODEL,
    PARTITION,
    open_zero,
)

INNER_FOLDERS = ("pytorch_model_fsdp_0", "model", "actor", "sharded")
"""Where trainers put the model below a checkpoint's directory."""
UNFINISHED = ("checkpoint-is-incomplete.txt", ".incomplete")
"""Files by which trainers mark a save that did not finish."""
COMPLETE = ("CHECKPOINT_COMPLETE", "ckpt_contents.json", "actor/ckpt_contents.json")
"""What LLaMA-Factory, and verl with Megatron, write last in a checkpoint."""
TRACKER = "latest_checkpointed_iteration.txt"
"""Beside the checkpoints of verl, written last: the newest whole step."""
TORCH_DIST = ("common.pt", "metadata.json")
"""Beside ``.metadata`` they tell Megatron's names."""
RANK = re.compile(rf"__(\d+)_\d+\{SUFFIX}")
STEP = re.compile(r"(?:^|[-_])(?:checkpoint|global_step|step|iter)[-_]?(\d+)(?:_universal)?$")
GLOBAL_STEP = re.compile(r"global_step(\d+)")

KINDS: dict[str, tuple[str, Callable[[Path], ShardedModel]]] = {
    "dcp": ("torch.distributed.checkpoint (FSDP)", open_dcp),
    "zero": ("DeepSpeed ZeRO", open_zero),
    "slices": ("slices in safetensors files", open_slices),
    "processes": ("a file of each process (verl, accelerate)", open_process_files),
}
"""Kind -> in words, and what opens it."""


@dataclass(frozen=True)
class Leftover:
    """The weights of a sharded training, whole or not."""

    kind: str
    """A key of ``KINDS``."""
    path: Path
    """The directory that holds the pieces: the one asked for, or one below it."""
    step: int | None
    """Optimiser step, where names say it."""
    world_size: int | None
    """How many processes wrote it, where names say it."""
    problem: str | None = None
    """What is missing or wrong, and the way out; None where all weights are there."""
    shards: ShardedModel | None = None
    """The tensors, where nothing is wrong."""

    @property
    def is_adapter(self) -> bool:
        """Whether it holds the tensors of a LoRA adapter only."""
        return self.shards is not None and any(".lora_" in name for name in self.shards.tensors)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        tensors = {} if self.shards is None else self.shards.tensors
        return {
            "kind": self.kind,
            "described": KINDS[self.kind][0],
            "path": str(self.path),
            "step": self.step,
            "world_size": self.world_size,
            "problem": self.problem,
            "is_adapter": self.is_adapter,
            "tensors": len(tensors),
            "dtypes": sorted({tensor.dtype for tensor in tensors.values()}),
            "bytes": 0 if self.shards is None else self.shards.bytes,
        }


def leftover(directory: Path) -> Leftover | None:
    """What a sharded training left in a directory of this machine; no tensor is read.

    Args:
        directory: a checkpoint's, e.g. ``checkpoint-12`` or ``global_step12``, or the folder of the
            model inside it.

    Returns:
        None where there is nothing of the kind.
    """
    try:
        found = _find(directory)
    except OSError:
        return None
    if found is None:
        return None
    kind, path, problem = found
    step = next((n for place in (path, directory) if (n := _step(place)) is not None), None)
    world_size = world_size_of(kind, [entry.name for entry in path.iterdir()])
    if problem is None:
        # A marker lies in the checkpoint's own directory, whichever of the two was asked for.
        around = [path.absolute().parent] if path.absolute().name in INNER_FOLDERS else []
        problem = next(filter(None, map(_marked, (directory, path, *around))), None)
    if problem is not None:
        return Leftover(kind, path, step, world_size, problem)
    try:
        shards = KINDS[kind][1](path)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror or error}"
    except SourceError as error:
        problem = str(error)
    else:
        return Leftover(kind, path, step, world_size, shards=shards)
    return Leftover(kind, path, step, world_size, problem)


def is_sharded(directory: Path) -> bool:
    """Whether a directory has what ``leftover`` finds and is no checkpoint; by names alone."""
    if any((directory / name).exists() for name in (SINGLE, INDEX, ADAPTER)):
        return False
    try:
        return _find(directory) is not None
    except OSError:
        return False


def kind_of(names: Iterable[str]) -> str | None:
    """A key of ``KINDS``, by the names of a directory's files; None where there are no pieces."""
    names = set(names)
    if METADATA in names or any(map(RANK.fullmatch, names)):
        return "dcp"
    if any(map(SLICES_NAME.fullmatch, names)):
        return "slices"
    if any(map(_is_zero_file, names)):
        return "zero"
    return "processes" if any(map(PROCESS_FILE.fullmatch, names)) else None


def is_piece(name: str) -> bool:
    """Whether a file of this name is a part of what a sharded training left."""
    return kind_of([name]) is not None


def latest_step(name: str) -> int | None:
    """The step in the name of a folder of DeepSpeed's, ``global_stepN``."""
    match = GLOBAL_STEP.fullmatch(name)
    return int(match[1]) if match else None


def _find(directory: Path) -> tuple[str, Path, str | None] | None:
    """Kind, place and what names alone show to be wrong."""
    if not directory.is_dir():
        return None
    for name in (LATEST, LATEST_UNIVERSAL):
        if (directory / name).is_file():
            return _tagged(directory, name)
    for place in (directory, *(directory / name for name in INNER_FOLDERS)):
        if not place.is_dir():
            continue
        names = {entry.name for entry in place.iterdir()}
        kind = kind_of(names)
        if kind == "dcp" and not names.isdisjoint(TORCH_DIST):
            return (
                "dcp",
                place,
                (
                    f"{place} has Megatron's names and fused tensors; average it with others by "
                    "`mergeops average DIR DIR OUT`, and convert it with Megatron-Bridge: "
                    "AutoBridge.from_hf_pretrained(BASE).export_ckpt(DIR, OUT)"
                ),
            )
        if kind is not None:
            return kind, place, _not_the_latest(place) if kind == "zero" else None
    steps = _steps(directory)
    if steps and _is_zero(directory / f"global_step{steps[-1]}"):
        return (
            "zero",
            directory / f"global_step{steps[-1]}",
            (
                f"{directory} has no file {LATEST}, which DeepSpeed writes last: the save of "
                f"global_step{steps[-1]} may not have finished; if it did, name "
                f"{directory}/global_step{steps[-1]} itself"
            ),
        )
    return None


def _tagged(directory: Path, latest: str) -> tuple[str, Path, str | None] | None:
    """The ``global_stepN`` that the file ``latest`` names."""
    try:
        name = (directory / latest).read_bytes()[:200].decode().strip()
    except ValueError:
        name = ""
    place = directory / name
    if name and name == Path(name).name and place.is_dir():
        return ("zero", place, None) if _is_zero(place) else None
    steps = _steps(directory)
    there = f", but there is only global_step{steps[-1]}" if steps else ", which is not there"
    return (
        "zero",
        directory,
        (
            f"{directory / latest} names {name!r}{there}: the save did not finish, or a part was "
            "not copied; name the checkpoint that is whole"
        ),
    )


def _not_the_latest(place: Path) -> str | None:
    """Refuse a ``global_stepN`` that is newer than what ``latest`` beside it names."""
    own = GLOBAL_STEP.fullmatch(place.name)
    if not (place.parent / LATEST).is_file():
        return None
    try:
        name = (place.parent / LATEST).read_bytes()[:200].decode().strip()
    except (OSError, ValueError):
        return None
    named = GLOBAL_STEP.fullmatch(name)
    if own and named and int(own[1]) > int(named[1]):
        return (
            f"{place} is newer than {name}, which the file {LATEST} beside it names: DeepSpeed "
            f"writes that last, so the save did not finish; use {place.parent / name}"
        )
    return None


def _is_zero(place: Path) -> bool:
    return place.is_dir() and any(_is_zero_file(entry.name) for entry in place.iterdir())


def _is_zero_file(name: str) -> bool:
    return name == MODEL or bool(PARTITION.fullmatch(name) or EXPERT.fullmatch(name))


def _steps(directory: Path) -> list[int]:
    matches = [GLOBAL_STEP.fullmatch(entry.name) for entry in directory.iterdir()]
    return sorted(int(match[1]) for match in matches if match)


def _marked(directory: Path) -> str | None:
    """What says that a save did not finish."""
    for name in UNFINISHED:
        if (directory / name).exists():
            return (
                f"{directory} has {name}, by which the trainer marks a save that did not finish; "
                "use an earlier checkpoint of the run"
            )
    if directory.name.startswith("tmp-checkpoint-"):
        return (
            f"{directory} has the name that a Trainer gives to a save until it is finished; use an "
            "earlier checkpoint of the run"
        )
    for mark in COMPLETE if _step(directory) is not None else ():
        beside = sorted(directory.absolute().parent.glob(f"*/{mark}"))
        if beside and not (directory / mark).exists():
            whole = str(beside[-1]).removesuffix(f"/{mark}")
            return (
                f"{directory} has no {mark}, which {whole} has: the save did not finish; use "
                f"{whole}"
            )
    return _newer_than_tracked(directory)


def _newer_than_tracked(directory: Path) -> str | None:
    """Refuse a step that is newer than the one that the tracker beside it names."""
    step, tracker = _step(directory), directory.absolute().parent / TRACKER
    try:
        newest = int(tracker.read_bytes()[:100]) if tracker.is_file() else None
    except (OSError, ValueError):
        return None
    if step is None or newest is None or step <= newest:
        return None
    return (
        f"{directory} is newer than step {newest}, which {tracker} names: that is written last, so "
        f"the save did not finish; use step {newest}"
    )


def _step(directory: Path) -> int | None:
    return step_of_name(directory.absolute().name)


def step_of_name(name: str) -> int | None:
    """The optimiser step that a directory's name says; None where it says none."""
    match = STEP.search(name)
    return int(match[1]) if match else None


def world_size_of(kind: str, names: Iterable[str]) -> int | None:
    """How many processes wrote files of these names; None where names do not say it.

    Args:
        kind: a key of ``KINDS``.
        names: of the files beside each other.
    """
    if kind == "processes":
        matches = [match for name in names if (match := PROCESS_FILE.fullmatch(name))]
        return int(matches[0]["world"] or len(matches)) if matches else None
    pattern, first = {"dcp": (RANK, 0), "slices": (SLICES_NAME, 1), "zero": (PARTITION, 0)}[kind]
    ranks = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return max(ranks) + 1 - first if ranks else None
