"""The header of one safetensors file, checked against the file before anything trusts it.

Format: 8 bytes little-endian header length, a JSON object ``{name: {dtype, shape,
data_offsets}}``, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format). The engine needs byte ranges of tensors,
which the safetensors library does not give, so the header is parsed here.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint.dtypes import SIZES, item_size
from mergeops.errors import SourceError

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library allows, too."""
SLICED = "DCP_SHARDING_INFO"
"""The key by which torch's distributed writer says where in its tensor each slice begins."""
SLICES_NAME = re.compile(r"shard-(\d+)-model-\d+-of-\d+\.safetensors")
"""How that writer calls a process's file of slices."""
_WHOLE_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor's bytes are."""

    name: str
    dtype: str
    """safetensors name, e.g. BF16."""
    shape: tuple[int, ...]
    file: str
    """File name inside the checkpoint's directory."""
    start: int
    """First byte, counted from the beginning of the file."""
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Parse and check one file's header.

    Returns:
        Name -> tensor, in the order of the data.

    Raises:
        SourceError: the file cannot be read, it lies, or it holds slices of tensors under the
            names of the whole; names file, tensor and value.
    """
    tensors, metadata = _read(path)
    if SLICED in metadata:
        _refuse_slices(path, _offsets(path, tensors, metadata))
    return tensors


def read_slices(path: Path) -> dict[str, tuple[StoredTensor, tuple[int, ...]]]:
    """Parse and check one file of slices of tensors, as a process of a sharded training wrote it.

    Returns:
        Name -> slice, and where in the tensor its first element is.

    Raises:
        SourceError: as ``read_header``, or the file holds no slices.
    """
    tensors, metadata = _read(path)
    if SLICED not in metadata:
        raise SourceError(
            f"{path} has no {SLICED} in its header, so it does not say what its "
            "tensors are slices of"
        )
    offsets = _offsets(path, tensors, metadata)
    return {name: (tensor, offsets[name]) for name, tensor in tensors.items()}


def _read(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a file and the metadata of its header."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise SourceError(f"{path} has {size} bytes, too few for a safetensors file")
            if length > MAX_HEADER_BYTES:
                raise SourceError(
                    f"{path}: its header claims {length} bytes; at most {MAX_HEADER_BYTES} are "
                    "allowed: the file is corrupt or no safetensors file"
                )
            if 8 + length > size:
                raise SourceError(
                    f"{path} is truncated: its header claims {length} bytes, the file has {size}"
                )
            text = file.read(length)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    content = _parse(path, text)
    metadata = content.pop("__metadata__", None)
    tensors = _tensors(path, content, 8 + length, size)
    return tensors, metadata if isinstance(metadata, dict) else {}


def check_regular(path: Path) -> None:
    """Refuse a pipe or a device before it is opened, which could block for ever.

    Raises:
        OSError: it is not there.
        SourceError: it is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise SourceError(f"{path} is not a regular file")


def encode_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The header of a file that holds tensors (name -> dtype, shape) without gaps, in this order.

    It is the length prefix and JSON, padded so that the data starts at a multiple of 8 bytes.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * item_size(dtype)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _offsets(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Tensor -> where its slice begins."""
    try:
        said = json.loads(metadata[SLICED])
        offsets = {name: tuple(said[name]["saved_offsets"]) for name in tensors}
        for name, offset in offsets.items():
            if len(offset) != len(tensors[name].shape) or not all(map(_is_count, offset)):
                raise ValueError(f"tensor {name} begins at {offset}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f"{path}: the {SLICED} of its header is damaged: {error}") from error
    return offsets


def _refuse_slices(path: Path, offsets: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse slices of tensors. The same writer puts the key, with all offsets zero, into the
    files of a model that one process wrote whole; those have other names."""
    if _WHOLE_NAME.fullmatch(path.name) and not any(map(any, offsets.values())):
        return
    raise SourceError(
        f"{path} holds slices of tensors under the names of the whole, as one process of a "
        f"sharded training wrote them; put them together with all processes' files by "
        f"`mergeops recover {path.parent} OUT --base BASE`, with BASE the model that was trained"
    )


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise SourceError(f"{path}: its header names {name!r} twice")
            content[name] = value
        return content

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: its header is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: its header is no JSON object")
    return content


def _tensors(
    path: Path, content: dict[str, Any], data_start: int, size: int
) -> dict[str, StoredTensor]:
    tensors = [_tensor(path, name, entry, data_start, size) for name, entry in content.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    expected = data_start
    for tensor in tensors:
        if tensor.start != expected:
            kind = "overlaps the one before it" if tensor.start < expected else "follows a gap"
            raise SourceError(
                f"{path}: tensor {tensor.name} {kind}: it starts at byte {tensor.start}, "
                f"expected {expected}"
            )
        expected = tensor.stop
    if expected != size:
        raise SourceError(f"{path} has {size} bytes, but its tensors end at byte {expected}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise SourceError(f"{where} has the entry {entry!r}; it needs dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise SourceError(f"{where} has dtype {dtype!r}; allowed: {', '.join(SIZES)}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise SourceError(f"{where} has shape {shape!r}; it takes a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise SourceError(f"{where} has data_offsets {offsets!r}; it takes two byte positions")
    start, stop = (data_start + offset for offset in offsets)
    if not start <= stop <= size:
        raise SourceError(
            f"{where} is at bytes {start} to {stop}, outside the file of {size} bytes: the file is "
            "truncated or its header lies"
        )
    wanted = math.prod(shape) * item_size(dtype)
    if stop - start != wanted:
        raise SourceError(f"{where} has {stop - start} bytes; {dtype} {shape} takes {wanted}")
    return StoredTensor(name, dtype, tuple(shape), path.name, start, stop)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
