"""Checkpoints of Megatron in torch_dist format, averaged under Megatron's own names.

``iter_NNNNNNN`` is a folder of torch.distributed.checkpoint with ``metadata.json``, which names the
format, and ``common.pt``, the training's arguments
(https://docs.nvidia.com/megatron-core/developer-guide/latest/api-guide/dist_checkpointing.html).
Fused tensors need no taking apart to be averaged: a mean is the same in any order of rows. What is
not a number of the model, ``_extra_state``, is copied from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mergeops.checkpoint import (
    FLOATS,
    Destination,
    read_json,
    read_range,
    sync_directory,
    sync_file,
    word,
)
from mergeops.errors import ConfigError, SourceError
from mergeops.lazy_torch import torch
from mergeops.progress import Progress
from mergeops.recover.dcp import METADATA, open_dcp, stored_bytes
from mergeops.recover.sharded import ShardedModel, ShardedTensor
from mergeops.recover.sharded_reader import ShardedReader

TRACKER = "latest_checkpointed_iteration.txt"
FORMAT = "metadata.json"
ITERATION = re.compile(r"iter_(\d{7,})")
NOT_OF_THE_MODEL = re.compile(
    r"(?:^|\.)(?:optimizer|rng_state|opt_param_scheduler|rerun_state\w*)\b"
)
"""What Megatron saves beside the model, by a part of its key."""
COPIED = ("common.pt", FORMAT, "run_config.yaml", "train_state.pt", "modelopt_run_config.yaml")
FILE = "__0_0.distcp"
PIECE_NUMBERS = 1 << 24
"""Numbers in one piece of the result; two of them are in memory at a time."""


@dataclass(frozen=True)
class Averaged:
    """What was averaged, and where it is."""

    sources: tuple[Path, ...]
    """The ``iter_N`` folders."""
    weights: tuple[float, ...]
    """Their shares, which add up to 1."""
    out: Path
    """The ``iter_N`` folder of the result."""
    tensors: int
    copied: int
    """Objects that are no tensors, from the last source."""
    was_there: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "sources": [str(source) for source in self.sources],
            "weights": list(self.weights),
            "out": str(self.out),
            "tensors": self.tensors,
            "copied": self.copied,
            "was_there": self.was_there,
        }


def average_megatron(
    directories: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Averaged:
    """Average checkpoints of Megatron into one that Megatron loads.

    Optimiser, scheduler and random states are left out: load it with ``--finetune``, or convert it.

    Args:
        directories: ``iter_N`` folders, or directories whose tracker names one; in order of age.
        out: a new directory, or one that holds this average; it gets ``iter_N`` of the last one's
            number, the tracker, and a manifest.
        weights: one for each; they are divided by their sum. None given are equal.
        dry_run: check everything, write nothing.
        progress: where steps are shown.

    Raises:
        ConfigError: the weights do not fit.
        SourceError: a folder is not whole, of another format, or has other tensors than the first.
        MergeError: the output cannot be written.
    """
    shares = _shares(weights, len(directories))
    folders = [iteration_folder(directory) for directory in directories]
    models = [_model(folder) for folder in folders]
    for model in models[1:]:
        _check_same(models[0], model)
    last = folders[-1]
    target = out / last.name
    objects = {
        key: data for key, data in stored_bytes(last).items() if not NOT_OF_THE_MODEL.search(key)
    }
    place = Destination(out, _key(models, shares), "averaged")
    was_there = place.is_done()
    result = Averaged(
        tuple(folders), shares, target, len(models[0].tensors), len(objects), was_there
    )
    if dry_run or was_there:
        return result
    with place.opened(models[0].bytes + (1 << 20)):
        folder = place.partial / last.name
        folder.mkdir()
        _write(models, shares, objects, last, folder, progress)
        (place.partial / TRACKER).write_text(str(int(ITERATION.fullmatch(last.name)[1])))  # type: ignore[index]
        names = [TRACKER, *(f"{last.name}/{file.name}" for file in folder.iterdir())]
        described = {"key": place.key, **result.to_dict()}
        place.close({"plan_digest": place.key, "averaged": described}, names)
    return result


def iteration_folder(directory: Path) -> Path:
    """The ``iter_N`` folder that a directory is, or that the tracker in it names.

    Raises:
        SourceError: it is neither, or not in the format torch_dist.
    """
    folder = directory
    if (directory / TRACKER).is_file():
        text = (directory / TRACKER).read_bytes()[:100].decode(errors="replace").strip()
        folder = directory / (f"iter_{int(text):07d}" if text.isdecimal() else text)
    if not ITERATION.fullmatch(folder.absolute().name) or not folder.is_dir():
        raise SourceError(
            f"{directory} is no checkpoint of Megatron: neither a folder iter_N nor a directory "
            f"whose {TRACKER} names one"
        )
    if not (folder / FORMAT).is_file():
        raise SourceError(
            f"{folder} has no {FORMAT}, which names the format: it is of Megatron's old format, or "
            "the save did not finish; save it with --ckpt-format torch_dist"
        )
    backend = read_json(folder / FORMAT).get("sharded_backend")
    if backend != "torch_dist":
        raise SourceError(
            f"{folder} is in the format {backend!r}; only torch_dist is averaged: save it with "
            "--ckpt-format torch_dist"
        )
    return folder.absolute()


def _shares(weights: Sequence[float], count: int) -> tuple[float, ...]:
    if count < 2:
        raise ConfigError(f"an average needs two checkpoints or more, not {count}")
    weights = list(weights) or [1.0] * count
    if len(weights) != count:
        raise ConfigError(
            f"there are {len(weights)} weights for {count} checkpoints; give one each"
        )
    total = sum(weights)
    if not all(0 <= weight < float("inf") for weight in weights) or not total > 0:
        raise ConfigError(f"the weights are {weights}; allowed are numbers from 0 on, not all 0")
    return tuple(weight / total for weight in weights)


def _key(models: Sequence[ShardedModel], shares: Sequence[float]) -> str:
    """Digest of what would be written."""
    files = [
        {name: [seen.size, seen.mtime_ns] for name, seen in sorted(model.stamps.items())}
        for model in models
    ]
    layout = [[t.name, t.dtype, t.shape] for t in models[0].tensors.values()]
    return hashlib.sha256(json.dumps([files, layout, list(shares)]).encode()).hexdigest()


def _model(folder: Path) -> ShardedModel:
    found = open_dcp(folder)
    tensors = {n: t for n, t in found.tensors.items() if not NOT_OF_THE_MODEL.search(n)}
    if not tensors:
        raise SourceError(f"{folder} holds no tensor of a model")
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise SourceError(f"{folder}: tensor {name} is {tensor.dtype}, which is not averaged")
    return ShardedModel(found.path, tensors, found.stamps, found.unpack)


def _check_same(first: ShardedModel, other: ShardedModel) -> None:
    differing = sorted(first.tensors.keys() ^ other.tensors.keys())
    if differing:
        has = first if differing[0] in first.tensors else other
        raise SourceError(
            f"{first.path} and {other.path} hold other tensors: {differing[0]} is only in "
            f"{has.path}; average checkpoints of one training setup"
        )
    for name, tensor in first.tensors.items():
        ours, theirs = (tensor.dtype, tensor.shape), other.tensors[name]
        if ours != (theirs.dtype, theirs.shape):
            raise SourceError(
                f"{first.path} and {other.path} differ in layout: tensor {name} is {tensor.dtype} "
                f"{list(tensor.shape)} and {theirs.dtype} {list(theirs.shape)}; average "
                "checkpoints of one training setup"
            )


def _write(
    models: Sequence[ShardedModel],
    shares: Sequence[float],
    objects: dict[str, bytes],
    last: Path,
    folder: Path,
    progress: Progress | None,
) -> None:
    described: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    shown = progress or Progress(quiet=True)
    total, done = sum(tensor.numel for tensor in models[0].tensors.values()), 0
    with contextlib.ExitStack() as opened, open(folder / FILE, "wb") as file:
        readers = [opened.enter_context(ShardedReader(model)) for model in models]
        tick = opened.enter_context(shown.bar("averaging"))
        for name, tensor in models[0].tensors.items():
            chunks = []
            for start, stop, offset, shape in _pieces(tensor):
                mean: Any = 0
                for reader, share in zip(readers, shares, strict=True):
                    mean = mean + read_range(reader, name, start, stop).double() * share
                piece = mean.to(_dtype(tensor)).view(shape)
                places[_index(name, offset)] = _append(file, piece)
                chunks.append((offset, shape))
                done += stop - start
                tick(done, total)
            described[name] = _tensor(tensor, chunks)
        for key, data in objects.items():
            places[_index(key, None)] = _append(file, data)
            described[key] = _bytes()
        for reader in readers:
            reader.check_unchanged()
    sync_file(folder / FILE)
    for name in COPIED:
        if (last / name).is_file():
            shutil.copyfile(last / name, folder / name)
            sync_file(folder / name)
    _write_metadata(folder, described, places)
    sync_directory(folder)


def _pieces(
    tensor: ShardedTensor,
) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """First and last number of each piece, where it begins, and its shape: whole rows."""
    if not tensor.shape:
        yield 0, 1, (), ()
        return
    row = tensor.numel // tensor.shape[0] if tensor.shape[0] else 1
    rows = max(1, PIECE_NUMBERS // max(1, row))
    for begin in range(0, tensor.shape[0], rows):
        end = min(begin + rows, tensor.shape[0])
        offset = (begin, *[0] * (len(tensor.shape) - 1))
        yield begin * row, end * row, offset, (end - begin, *tensor.shape[1:])


def _append(file: IO[bytes], value: Any) -> Any:
    """Add a piece, as torch.distributed.checkpoint stores it, and say where it is."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    start = file.tell()
    if isinstance(value, bytes):
        file.write(value)
    else:
        buffer = io.BytesIO()
        torch.save(value.clone(), buffer)
        file.write(buffer.getbuffer())
    return _StorageInfo(FILE, start, file.tell() - start)


def _dtype(tensor: ShardedTensor) -> Any:
    return getattr(torch, word(tensor.dtype))


def _index(key: str, offset: tuple[int, ...] | None) -> Any:
    from torch.distributed.checkpoint.metadata import MetadataIndex

    return MetadataIndex(key, None if offset is None else torch.Size(offset))


def _tensor(
    tensor: ShardedTensor, chunks: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Any:
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    return TensorStorageMetadata(
        TensorProperties(dtype=_dtype(tensor)),
        torch.Size(tensor.shape),
        [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks],
    )


def _bytes() -> Any:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    return BytesStorageMetadata()


def _write_metadata(folder: Path, described: dict[str, Any], places: dict[Any, Any]) -> None:
    """Write the index last: without it nobody reads the folder."""
    from torch.distributed.checkpoint.metadata import Metadata

    metadata = Metadata(described, planner_data={key: (key,) for key in described})
    metadata.storage_data = places
    # Megatron looks here for tensors that it stores in another shape; a model has none.
    metadata.mcore_data = {}  # type: ignore[attr-defined]
    temporary = folder / f"{METADATA}.tmp"
    with open(temporary, "wb") as file:
        pickle.dump(metadata, file)
    sync_file(temporary)
    os.replace(temporary, folder / METADATA)
