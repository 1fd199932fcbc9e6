"""Weights that are there in a form that is not read: what they are, and how they become readable.

Decided by file names alone: what is pickled is never opened here. Which files mean what:
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
    """What sharded or foreign weights a directory holds, and what makes them readable; None where
    it holds none."""
    files = {entry.name for entry in entries if not entry.is_dir}
    for entry in entries:
        if entry.is_dir and _FSDP_FOLDER.match(entry.name):
            return _torch_shards(directory.inside(entry.name))
        if entry.is_dir and (step := _ZERO_FOLDER.match(entry.name)):
            inside = {e.name for e in directory.inside(entry.name).entries()}
            if any(_ZERO_RANK.search(name) for name in inside):
                return _zero(directory, files, inside, int(step[1]))
    if any(_TORCH_SHARD.match(name) for name in files):
        return _torch_shards(directory)
    if slices := {match[1] for name in files if (match := _SLICE.match(name))}:
        return _slices(directory, files, len(slices))
    if verl := [match for name in files if (match := _VERL.match(name))]:
        return (
            f"{directory.shown} holds verl's weights in {len(verl)} of {verl[0][1]} shards, "
            "pickled by rank; make one checkpoint of them: python -m verl.model_merger merge "
            f"--backend fsdp --local_dir {directory.shown} --target_dir NEW_DIR"
        )
    if told := gguf_instead(files):
        return f"{directory.shown} {told}"
    return None


def _torch_shards(directory: Directory) -> str:
    names = {entry.name for entry in directory.entries()}
    ranks = {match[1] for name in names if (match := _TORCH_SHARD.match(name))}
    held = (
        f"{directory.shown} holds the torch.distributed.checkpoint shards of {len(ranks)} rank(s)"
    )
    if ".metadata" not in names:
        return (
            f"{held} without .metadata, which is written last: the save did not finish; use "
            "another checkpoint"
        )
    if names & {"common.pt", "metadata.json"}:
        return (
            f"{held}, under Megatron's names; make a Hugging Face checkpoint of them with "
            "Megatron-Bridge: AutoBridge.from_hf_pretrained(BASE).export_ckpt(...)"
        )
    if not _FSDP_FOLDER.match(directory.shown.rpartition("/")[2]):
        return (
            f"{held}, a finished save under its trainer's own names; convert it with that "
            "trainer's tool, or make one file of it and name its tensors as transformers does: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {directory.shown} "
            "FILE"
        )
    return (
        f"{held}, a finished FSDP save; make one file of them: accelerate merge-weights "
        f"{directory.shown} NEW_DIR, then copy config.json and the tokenizer of the model that "
        "was trained into NEW_DIR (of an adapter, name the file adapter_model.safetensors and "
        "write its adapter_config.json)"
    )


def _zero(directory: Directory, files: set[str], inside: set[str], step: int) -> str:
    ranks = {match[1] for name in inside if (match := _ZERO_RANK.search(name))}
    script = f"{directory.shown}/zero_to_fp32.py"
    if "zero_to_fp32.py" not in files:
        script = "-m deepspeed.utils.zero_to_fp32"
    config = "" if "config.json" in files else " of the model that was trained"
    return (
        f"{directory.shown} holds the DeepSpeed ZeRO shards of {len(ranks)} rank(s) at step "
        f"{step}; make one checkpoint of them: python {script} {directory.shown} NEW_DIR "
        f"--safe_serialization, then copy config.json{config} into NEW_DIR"
    )


def _slices(directory: Directory, files: set[str], ranks: int) -> str:
    way = (
        'python -c "from transformers.distributed import consolidate_distributed_checkpoint as c; '
        f"c('{directory.shown}', 'NEW_DIR')\""
    )
    if "consolidate.sh" in files:
        way = f"bash {directory.shown}/consolidate.sh"
    return (
        f"{directory.shown} holds slices of tensors by {ranks} rank(s) (shard-*.safetensors), no "
        f"whole tensors; make one checkpoint of them: {way}"
    )
