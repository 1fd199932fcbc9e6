"""Writing recovered tensors as a Hugging Face directory: whole under its name, or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from mergeops.checkpoint import (
    INDEX,
    SINGLE,
    TensorReader,
    WrittenFile,
    encode_header,
    item_size,
    sync_file,
)
from mergeops.progress import Tick
from mergeops.recover.sharded import ShardedTensor

SHARD_BYTES = 5_000_000_000
CHUNK_BYTES = 1 << 25


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
