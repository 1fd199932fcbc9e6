"""What was left, checked against the model that was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from mergeops.checkpoint import (
    ADAPTER,
    CONFIG,
    INDEX,
    SINGLE,
    Checkpoint,
    CheckpointReader,
    open_checkpoint,
    read_json,
    read_range,
    read_tensor,
)
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch
from mergeops.recover.finding import Leftover, leftover
from mergeops.recover.llama_names import hugging_face_names
from mergeops.recover.names import check_names, model_names
from mergeops.recover.sharded import ShardedModel
from mergeops.recover.sharded_reader import ShardedReader

EXPERTS = ".experts."
"""Part of the names of a mixture's experts."""
TIED = ("lm_head.weight", "model.embed_tokens.weight")
"""The output head that tied models do not save, and what it is tied to."""


def found_whole(directory: Path) -> tuple[Leftover, ShardedModel]:
    """What a sharded training left in a directory, with all its tensors.

    Raises:
        SourceError: there is nothing of the kind, or it is not whole.
    """
    found = leftover(directory)
    if found is None:
        raise SourceError(_nothing(directory))
    if found.shards is None:
        raise SourceError(str(found.problem))
    return found, found.shards


def open_on_base(directory: Path, base: Path) -> ShardedModel:
    """The model that a sharded training left, as a source that is read where it lies.

    Args:
        directory: as ``recover`` takes it.
        base: a full checkpoint, the model that was trained.

    Returns:
        The tensors under the base's names, in its order.

    Raises:
        SourceError: as ``recover``, or it holds an adapter only.
    """
    found, shards = found_whole(directory)
    if found.is_adapter:
        raise SourceError(
            f"{directory} holds the tensors of a LoRA adapter in pieces; put it together first: "
            f"`mergeops recover {directory} OUT`"
        )
    checkpoint = open_checkpoint(base)
    model, _ = without_tied_head(shards, read_json(base / CONFIG), checkpoint)
    return fitted(found, model, checkpoint)


def fitted(found: Leftover, model: ShardedModel, base: Checkpoint) -> ShardedModel:
    """The model in the order of its base, whose names and shapes it has."""
    check_names(found.path, model.tensors, base.tensors, base.path)
    return dataclasses.replace(model, tensors={name: model.tensors[name] for name in base.tensors})


def without_tied_head(
    shards: ShardedModel, config: Mapping[str, Any], base: Checkpoint | None
) -> tuple[ShardedModel, bool]:
    """The model under its plain names, and whether a tied head was left out that was saved twice.

    Raises:
        SourceError: the head is not what it is said to be tied to.
    """
    head, embedding = TIED
    tensors = hugging_face_names(model_names(shards.tensors), config)
    model = dataclasses.replace(shards, tensors=tensors)
    if not config.get("tie_word_embeddings") or not {head, embedding} <= tensors.keys():
        return model, False
    if base is not None and head in base.tensors:
        return model, False
    _check_tied(model)
    kept = {name: tensor for name, tensor in tensors.items() if name != head}
    return dataclasses.replace(model, tensors=kept), True


def same_experts(path: Path, sums: Mapping[str, str], base: Checkpoint | None) -> tuple[str, ...]:
    """A note where the experts are the base's to the last bit: some tools leave them out of a save.

    Args:
        path: what was put together, as the note names it.
        sums: tensor -> xxh3-128 of its bytes.
        base: the model that was trained.
    """
    experts = [name for name in sums if EXPERTS in name]
    if base is None or not experts:
        return ()
    with CheckpointReader(base) as reader:
        for name in experts:
            # Trained ones differ in the first that is read.
            content = read_tensor(reader, name).contiguous().flatten().view(torch.uint8).numpy()
            if xxhash.xxh3_128(content.data).hexdigest() != sums[name]:
                return ()
    return (
        f"all {len(experts)} tensors of experts in {path} are those of {base.path}, to the last "
        "bit: where they were trained, they were left out of this save, as by unsloth-zoo before "
        "2026-06-15; merge the run's adapter instead",
    )


def _nothing(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory} is not a directory; name a checkpoint of a sharded training"
    names = {entry.name for entry in directory.iterdir()}
    if names & {SINGLE, INDEX, ADAPTER}:
        return f"{directory} is a whole checkpoint already; use it as a source"
    listed = ", ".join(sorted(names)[:5]) or "nothing"
    return (
        f"{directory} holds nothing that a sharded training left: no .metadata with *.distcp "
        "(FSDP), no *_model_states.pt (DeepSpeed), no shard-*-model-*.safetensors and no "
        f"model_world_size_*_rank_*.pt; it has {listed}"
    )


def _check_tied(model: ShardedModel) -> None:
    head, embedding = TIED
    if model.tensors[head].shape == model.tensors[embedding].shape:
        with ShardedReader(model) as reader:
            numel, step = model.tensors[head].numel, 1 << 22
            if all(
                read_range(reader, head, at, min(at + step, numel)).equal(
                    read_range(reader, embedding, at, min(at + step, numel))
                )
                for at in range(0, numel, step)
            ):
                return
    raise SourceError(
        f"{model.path}: the config says that {head} is tied to {embedding}, but they differ; "
        "name as base a directory whose config.json has tie_word_embeddings as in the training"
    )
