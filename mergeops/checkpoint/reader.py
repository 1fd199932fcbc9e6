"""Reading ranges of tensors into buffers that the caller owns."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mergeops.checkpoint.dtypes import SIZES, item_size, torch_dtype
from mergeops.checkpoint.hash_along import HashAlong, Take
from mergeops.checkpoint.header import StoredTensor
from mergeops.checkpoint.layout import Checkpoint, FileStamp, open_checkpoint
from mergeops.checkpoint.staged import staged
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch

Bytes = npt.NDArray[np.uint8]
_FLOATS: dict[str, Any] = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
KEPT = 4
"""Ranges that are kept for decoding: scales, and an expert's codes, which are read column by
column."""


class TensorReader(Protocol):
    """What the engine needs of a source, be it a full checkpoint or an adapter on its base."""

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """Put elements ``start`` to ``stop`` of a flattened tensor at the begin of ``staging``.

        Args:
            name: the tensor.
            start: first element.
            stop: one past the last.
            staging: ``[bytes]`` uint8, 8 for each element whatever its format.

        Returns:
            The safetensors name of the format that the reader delivers.

        Raises:
            SourceError: the file cannot be read, or is shorter than its header says.
        """
        ...

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """Tell the system that this range is read soon."""
        ...

    def check_unchanged(self) -> None:
        """Raise SourceError if a file is not the one that was planned with."""
        ...

    def close(self) -> None:
        """Close all files."""
        ...


class CheckpointReader:
    """Reads a full checkpoint. Safe to use from several threads.

    Args:
        checkpoint: its headers.
        stamps: what the files must look like; as ``checkpoint`` found them by default.
        hashes: what hashes the files while they are read.

    Raises:
        SourceError: a file is missing or changed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stamps: Mapping[str, FileStamp] | None = None,
        hashes: HashAlong | None = None,
    ) -> None:
        self._path = checkpoint.path
        self._tensors = checkpoint.tensors
        self._coded = checkpoint.coded
        self.kept_range = functools.lru_cache(maxsize=KEPT)(self.stored_range)
        self._stamps = dict(checkpoint.stamps if stamps is None else stamps)
        self._files: dict[str, int] = {}
        self._copies: dict[str, int] = {}
        """What is read in place of a file."""
        self._take: dict[str, Take] = {}
        if hashes is not None:
            followed = {name: hashes.follow(self._path / name) for name in checkpoint.stamps}
            self._take = {name: take for name, take in followed.items() if take}
        try:
            for name in checkpoint.stamps:
                self._files[name] = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC)
            self.check_unchanged()
            for name, stamp in self._stamps.items():
                copy = staged(self._path / name, stamp)
                if copy != self._path / name:
                    self._copies[name] = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise SourceError(f"{error.filename}: {error.strerror}") from error
        except SourceError:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        stamps: Mapping[str, FileStamp] | None = None,
        hashes: HashAlong | None = None,
    ) -> Self:
        """Read the headers of a directory and open its files."""
        return cls(open_checkpoint(path), stamps, hashes)

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor is."""
        return self._tensors[name]

    def read(self, name: str, start: int, stop: int, staging: Bytes) -> str:
        """See ``TensorReader``; delivers the stored dtype, and needs room for that only. Numbers
        that are stored as codes come in the model's."""
        tensor = self._tensors[name]
        if name in self._coded:
            numbers = self._coded[name].numbers(self, start, stop)
            as_tensor(staging, tensor.dtype, stop - start).copy_(numbers)
        else:
            self._read_stored(tensor, start, stop, staging)
        return tensor.dtype

    def stored_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """See ``StoredReads``; ``kept_range`` keeps the last few."""
        staging = np.empty((stop - start) * item_size(tensor.dtype), np.uint8)
        self._read_stored(tensor, start, stop, staging)
        return as_tensor(staging, tensor.dtype, stop - start)

    def _read_stored(self, tensor: StoredTensor, start: int, stop: int, staging: Bytes) -> None:
        size = item_size(tensor.dtype)
        view = staging[: (stop - start) * size].data
        position = tensor.start + start * size
        done, file = 0, self._open(tensor)
        while done < len(view):
            try:
                n = os.preadv(file, [view[done:]], position + done)
            except OSError as error:
                raise SourceError(
                    f"{self._path / tensor.file} cannot be read at byte {position + done}, tensor "
                    f"{tensor.name}: {error.strerror}"
                ) from error
            if n == 0:
                raise SourceError(
                    f"{self._path / tensor.file} ends at byte {position + done}, inside tensor "
                    f"{tensor.name}: it was cut while being read"
                )
            done += n
        if tensor.file in self._take:
            self._take[tensor.file](position, view)

    def prefetch(self, name: str, start: int, stop: int) -> None:
        """See ``TensorReader``."""
        tensor = self._tensors[name]
        if name in self._coded:
            tensor, start, stop = self._coded[name].extent(start, stop)
        size = item_size(tensor.dtype)
        os.posix_fadvise(
            self._open(tensor),
            tensor.start + start * size,
            (stop - start) * size,
            os.POSIX_FADV_WILLNEED,
        )

    def _open(self, tensor: StoredTensor) -> int:
        return self._copies.get(tensor.file, self._files[tensor.file])

    def check_unchanged(self) -> None:
        """See ``TensorReader``."""
        if self._stamps.keys() != self._files.keys():
            raise SourceError(f"{self._path} has other weight files than when it was planned with")
        for name, file in self._files.items():
            status = os.fstat(file)
            if status.st_nlink == 0:
                raise SourceError(
                    f"{self._path / name} was deleted after the merge was planned; put it back, "
                    "and run the command again"
                )
            if FileStamp.of(status) != self._stamps[name]:
                raise SourceError(
                    f"{self._path / name} changed after the merge was planned; run the command "
                    "again when nobody writes it"
                )

    def close(self) -> None:
        """See ``TensorReader``."""
        for files in (self._files, self._copies):
            while files:
                os.close(files.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_tensor(staging: Bytes, dtype: str, numel: int) -> torch.Tensor:
    """What ``TensorReader.read`` put there, ``[numel]``; shares its memory.

    Args:
        staging: as it was given to ``read``.
        dtype: what ``read`` returned.
        numel: how many elements were read.
    """
    return torch.from_numpy(staging[: numel * item_size(dtype)]).view(torch_dtype(dtype))


def as_floats(stored: Bytes, dtype: str, compute: str) -> npt.NDArray[Any]:
    """Stored numbers in the dtype of the arithmetic, without torch.

    Args:
        stored: bytes of BF16, F16, F32 or F64.
        dtype: which.
        compute: F32 or F64.
    """
    wanted = _FLOATS[compute]
    if dtype == "BF16":
        values = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = stored.view(_FLOATS[dtype])
    with np.errstate(over="ignore"):
        return values.astype(wanted, copy=False)


def read_bytes(reader: TensorReader, name: str, start: int, stop: int) -> tuple[Bytes, str]:
    """Elements ``start`` to ``stop`` of a flattened tensor as bytes, and their dtype.

    Raises:
        SourceError: as ``TensorReader.read``.
    """
    staging = np.empty((stop - start) * max(SIZES.values()), np.uint8)
    dtype = reader.read(name, start, stop, staging)
    return staging[: (stop - start) * item_size(dtype)], dtype


def read_range(reader: TensorReader, name: str, start: int, stop: int) -> torch.Tensor:
    """Elements ``start`` to ``stop`` of a flattened tensor, in the dtype that the reader delivers.

    Raises:
        SourceError: as ``TensorReader.read``.
    """
    stored, dtype = read_bytes(reader, name, start, stop)
    return as_tensor(stored, dtype, stop - start)


def read_tensor(reader: CheckpointReader, name: str) -> torch.Tensor:
    """One whole tensor, for the small ones."""
    stored = reader.stored(name)
    return read_range(reader, name, 0, stored.numel).view(stored.shape)
