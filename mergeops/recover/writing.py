"""Writing recovered tensors as a Hugging Face directory: whole under its name, or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mergeops.checkpoint import (
    INDEX,
    MANIFEST,
    SINGLE,
    TensorReader,
    WrittenFile,
    encode_header,
    item_size,
    locked,
    read_manifest,
    replace_with,
    sync_directory,
    sync_file,
    write_manifest,
)
from mergeops.errors import MergeError
from mergeops.progress import Tick
from mergeops.recover.sharded import ShardedTensor

SHARD_BYTES = 5_000_000_000
CHUNK_BYTES = 1 << 25
JOURNAL = "recovered.json"
"""Beside the unfinished files: which of them are finished."""


def shard_files(tensors: Mapping[str, ShardedTensor]) -> dict[str, list[ShardedTensor]]:
    """File -> its tensors, in order, each file at most ``SHARD_BYTES`` or one tensor."""
    groups: list[list[ShardedTensor]] = [[]]
    size = 0
    for tensor in tensors.values():
        need = tensor.numel * item_size(tensor.dtype)
        if groups[-1] and size + need > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += need
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": group for i, group in enumerate(groups, 1)}


class Destination:
    """The directory that is to be made: files are written into a hidden sibling, which takes the
    name when all are on the disk. A killed try goes on with the next file.

    Args:
        out: its name.
        key: digest of what is written; another one's unfinished files are dropped.
        kind: what was done to it, as the manifest calls it.
    """

    def __init__(self, out: Path, key: str, kind: str = "recovered") -> None:
        self.out = out
        self.key = key
        self.kind = kind
        self.partial = out.with_name(f".{out.name}.{kind.removesuffix('ed')}ing")
        self.finished: dict[str, WrittenFile] = {}

    def is_done(self) -> bool:
        """Whether this very result is there.

        Raises:
            MergeError: something else is.
        """
        if not self.out.exists():
            return False
        if not self.out.is_dir():
            raise MergeError(f"{self.out} is a file; the output must be a new or empty directory")
        manifest = read_manifest(self.out)
        if manifest is None and any(self.out.iterdir()):
            raise MergeError(
                f"{self.out} is not empty and holds no {MANIFEST}; choose a new directory, or "
                "empty it"
            )
        if manifest is not None and manifest.get(self.kind, {}).get("key") != self.key:
            raise MergeError(
                f"{self.out} holds something else already; choose a new directory, or remove it"
            )
        return manifest is not None

    @contextlib.contextmanager
    def opened(self, needed: int) -> Iterator[None]:
        """Hold the unfinished directory for the block, and find what an earlier try finished.

        Raises:
            MergeError: it cannot be made, another process writes it, or there is no room.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            with locked(self.partial, wait=False, is_directory=True):
                self._read_journal()
                present = sum(file.size for file in self.finished.values())
                free = shutil.disk_usage(self.partial).free + present
                if free < needed:
                    raise MergeError(
                        f"{self.out} needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are "
                        "free there; free some space, or write it elsewhere"
                    )
                yield
        except BlockingIOError as error:
            raise MergeError(
                f"another process is writing {self.out}; wait until it ends"
            ) from error
        except OSError as error:
            raise MergeError(
                f"{self.out} cannot be written: {error.strerror or error}; what is done so far is "
                "kept, and the same command goes on from there"
            ) from error

    def finish(self, name: str, file: WrittenFile) -> None:
        """Note that a file is whole and on the disk."""
        self.finished[name] = file
        noted = {n: [f.sha256, f.size, dict(f.tensors)] for n, f in self.finished.items()}
        with replace_with(self.partial / JOURNAL) as temporary:
            temporary.write_text(json.dumps({"key": self.key, "files": noted}), encoding="utf-8")

    def close(self, content: Mapping[str, Any], names: Sequence[str]) -> None:
        """Write the manifest and give the directory its name."""
        (self.partial / JOURNAL).unlink(missing_ok=True)
        write_manifest(self.partial, content, names, self.finished)
        sync_directory(self.partial)
        if self.out.exists():
            self.out.rmdir()
        os.rename(self.partial, self.out)
        sync_directory(self.out.absolute().parent)

    def _read_journal(self) -> None:
        try:
            noted = json.loads((self.partial / JOURNAL).read_text(encoding="utf-8"))
            if noted["key"] == self.key:
                for name, (sha256, size, tensors) in noted["files"].items():
                    if (self.partial / name).stat().st_size == size:
                        self.finished[name] = WrittenFile(sha256, size, tensors)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self.finished = {}
        for entry in self.partial.iterdir():
            if entry.name not in (JOURNAL, *self.finished):
                entry.unlink()


def write_file(
    path: Path, tensors: Sequence[ShardedTensor], reader: TensorReader, tick: Tick | None
) -> tuple[WrittenFile, list[str]]:
    """Write one safetensors file, chunk by chunk, and bring it to the disk.

    Returns:
        What was written, and the tensors of two axes or more that are zero throughout.
    """
    header = encode_header({t.name: (t.dtype, t.shape) for t in tensors})
    digest = hashlib.sha256(header)
    size = len(header) + sum(t.numel * item_size(t.dtype) for t in tensors)
    sums, zeros, done = {}, [], len(header)
    with open(path, "wb") as file, ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        file.write(header)
        buffers = [np.empty(CHUNK_BYTES, np.uint8) for _ in range(2)]
        waiting: list[Future[None]] = []
        for tensor in tensors:
            checksum = xxhash.xxh3_128()
            width = item_size(tensor.dtype)
            step, is_zero = CHUNK_BYTES // width, True
            for start in range(0, tensor.numel, step):
                stop = min(start + step, tensor.numel)
                # The one before the last was hashed, so its buffer is free.
                while len(waiting) > 1:
                    waiting.pop(0).result()
                data = buffers[0][: (stop - start) * width]
                buffers.reverse()
                reader.read(tensor.name, start, stop, data)
                waiting.append(pool.submit(digest.update, data.data))
                checksum.update(data.data)
                file.write(data.data)
                is_zero = is_zero and not data.any()
                done += len(data)
                if tick is not None:
                    tick(done, size)
            sums[tensor.name] = checksum.hexdigest()
            if is_zero and len(tensor.shape) > 1:
                zeros.append(tensor.name)
        for last in waiting:
            last.result()
    sync_file(path)
    return WrittenFile(digest.hexdigest(), size, sums), zeros


def write_index(directory: Path, files: Mapping[str, Sequence[ShardedTensor]]) -> None:
    """The index of a model in several files."""
    weight_map = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
    total = sum(t.numel * item_size(t.dtype) for tensors in files.values() for t in tensors)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (directory / INDEX).write_text(text + "\n", encoding="utf-8")
