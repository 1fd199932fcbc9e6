"""Weights in a store that are not read there: what they are, and how they become readable.

Decided by file names alone; on this machine recover looks into them. Which files mean what:
torch.distributed.checkpoint writes ``.metadata`` last; DeepSpeed puts a step in ``global_stepN``;
transformers and NeMo Automodel write slices of tensors as ``shard-R-model-N-of-M.safetensors``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergeops.checkpoint import gguf_instead
from mergeops.sources.remote.directory import Directory, DirectoryEntry

UNFINISHED = {
    "checkpoint-is-incomplete.txt": "transformers",
    ".incomplete": "NeMo Automodel",
}
"""Files that are there while a checkpoint is written, and whose they are."""

_TORCH_SHARD = re.compile(r"^__(\d+)_\d+\.distcp$")
_ZERO_FOLDER = re.compile(r"^global_step(\d+)$")
_ZERO_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt$")
_SLICE = re.compile(r"^shard-(\d+)-model-\d+-of-\d+\.safetensors$")
_VERL = re.compile(r"^model_world_size_(\d+)_rank_\d+\.pt$")
_FSDP_FOLDER = re.compile(r"^pytorch_model_fsdp_\d+$")


def unfinished(directory: Directory, entries: Sequence[DirectoryEntry]) -> str | None:
    """Which marker says that a save did not finish; None where none does."""
    for entry in entries:
        if entry.name in UNFINISHED:
            return (
                f"{directory.shown} holds {entry.name}, which {UNFINISHED[entry.name]} removes "
                "when a save is complete: the save did not finish; use another checkpoint"
            )
    return None


def unread_weights(directory: Directory, entries: Sequence[DirectoryEntry]) -> str | None:
    """What weights a directory holds in a form that is not read, and the way out; None where it
    holds none."""
    files = {entry.name for entry in entries if not entry.is_dir}
    if (pieces := _pieces(directory, entries, files)) is not None:
        return (
            f"{directory.shown} holds {pieces}; copy it to a disk of this machine and put it "
            "together: `mergeops recover DIR OUT --base BASE`, with BASE the model that was trained"
        )
    if told := gguf_instead(files):
        return f"{directory.shown} {told}"
    return None


def _pieces(directory: Directory, entries: Sequence[DirectoryEntry], files: set[str]) -> str | None:
    for entry in entries:
        if entry.is_dir and _FSDP_FOLDER.match(entry.name):
            return "what FSDP saved in pieces (torch.distributed.checkpoint)"
        if entry.is_dir and (step := _ZERO_FOLDER.match(entry.name)):
            inside = {e.name for e in directory.inside(entry.name).entries()}
            if ranks := {match[1] for name in inside if (match := _ZERO_RANK.search(name))}:
                return f"the DeepSpeed ZeRO shards of {len(ranks)} rank(s) at step {step[1]}"
    if ranks := {match[1] for name in files if (match := _TORCH_SHARD.match(name))}:
        return f"the torch.distributed.checkpoint shards of {len(ranks)} rank(s)"
    if ranks := {match[1] for name in files if (match := _SLICE.match(name))}:
        return f"slices of tensors by {len(ranks)} rank(s) (shard-*.safetensors)"
    if verl := [match for name in files if (match := _VERL.match(name))]:
        return f"verl's weights in {len(verl)} of {verl[0][1]} shards"
    return None
