"""Slices of tensors in safetensors files, one file or more for each process.

torch's distributed writer for Hugging Face makes them (for transformers, NeMo Automodel and
torchtitan): valid files, with the slices under the names of the whole, and where each begins in the
header. How large the whole is stands nowhere: only the base can say that the last ones are there.
"""

from __future__ import annotations

from pathlib import Path

from mergeops.checkpoint import SLICES_NAME, StoredTensor, read_slices, stamp
from mergeops.errors import SourceError
from mergeops.recover.sharded import Place, ShardBox, ShardedModel, ShardedTensor, check_covered


def open_slices(path: Path) -> ShardedModel:
    """The tensors that the slices in a directory make up.

    Raises:
        SourceError: a file is damaged or missing, or the slices leave a gap.
    """
    matches = [
        match for entry in sorted(path.iterdir()) if (match := SLICES_NAME.fullmatch(entry.name))
    ]
    ranks = sorted({int(match[1]) for match in matches})
    gaps = [rank for rank in range(1, max(ranks, default=1) + 1) if rank not in ranks]
    if gaps:
        raise SourceError(
            f"{path}: the files shard-{gaps[0]:05d}-model-*.safetensors are missing, and with them "
            "a part of every tensor; copy the files of every process into it"
        )
    found: dict[str, list[tuple[StoredTensor, tuple[int, ...]]]] = {}
    for match in matches:
        for name, piece in read_slices(path / match[0]).items():
            found.setdefault(name, []).append(piece)
    tensors = {name: _tensor(path, name, pieces) for name, pieces in found.items()}
    return ShardedModel(path, tensors, {match[0]: stamp(path / match[0]) for match in matches})


def _tensor(
    path: Path, name: str, slices: list[tuple[StoredTensor, tuple[int, ...]]]
) -> ShardedTensor:
    first = slices[0][0]
    for stored, _ in slices:
        if (stored.dtype, len(stored.shape)) != (first.dtype, len(first.shape)):
            raise SourceError(
                f"{path}: tensor {name} is {first.dtype} {list(first.shape)} in {first.file}, but "
                f"{stored.dtype} {list(stored.shape)} in {stored.file}: they are of several saves"
            )
    pieces: dict[tuple[tuple[int, ...], tuple[int, ...]], ShardBox] = {}
    for stored, offset in slices:
        shape = stored.shape or (1,)
        if stored.numel:
            piece = ShardBox(offset or (0,), shape, Place(stored.file, stored.start))
            # Processes that hold the same slice may each have written it.
            pieces.setdefault((piece.offset, shape), piece)
    ends = [
        [begin + n for begin, n in zip(offset, stored.shape, strict=True)]
        for stored, offset in slices
    ]
    shape = tuple(map(max, zip(*ends, strict=True))) if first.shape else ()
    tensor = ShardedTensor(name, first.dtype, shape, tuple(pieces.values()))
    check_covered(path, tensor)
    return tensor
