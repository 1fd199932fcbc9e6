"""Pickled weights (pytorch_model.bin, adapter_model.bin), converted once to safetensors in a cache.

Only tensors are unpickled, by torch's weights-only loader, which runs no code of the file's
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import Any

from mergeops.checkpoint.conversions import kept_conversion
from mergeops.checkpoint.layout import (
    ADAPTER,
    INDEX,
    PICKLED,
    PICKLED_ADAPTER,
    PICKLED_INDEX,
    SINGLE,
    weight_map,
)
from mergeops.checkpoint.sizes import lacking
from mergeops.errors import SourceError
from mergeops.lazy_torch import torch
from mergeops.progress import Tick

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_MOST_VIEWS = 8
"""Tensors may share their bytes, as tied heads do; a few bytes could describe any number."""


def converted(path: Path, cache_dir: Path, progress: Tick | None = None) -> Path:
    """A directory like ``path``, with its weights as safetensors, and links to its other files.

    Args:
        path: has pickled weights, of a full model or an adapter, and no others.
        cache_dir: the conversion is kept below it, and found again while the files are the same.
        progress: told how far it is.

    Raises:
        SourceError: a file is missing, cannot be read, changes meanwhile, or holds more than
            tensors.
    """
    files = _pickled_files(path)
    for file in files:
        if not file.is_file():
            raise SourceError(f"{path}: {file.name} is missing, but {PICKLED_INDEX} names it")
    return kept_conversion(
        path,
        files,
        cache_dir,
        "pickled weights",
        lambda folder: _convert(path, files, folder, progress),
    )


def _pickled_files(path: Path) -> list[Path]:
    if (path / PICKLED_ADAPTER).exists():
        return [path / PICKLED_ADAPTER]
    if (path / PICKLED).exists():
        return [path / PICKLED]
    return [path / name for name in sorted(set(weight_map(path / PICKLED_INDEX, "").values()))]


def _convert(path: Path, files: list[Path], folder: Path, progress: Tick | None) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    total, done = sum(file.stat().st_size for file in files), 0
    free = shutil.disk_usage(folder).free
    if free < total:
        raise SourceError(
            f"{path} has pickled weights, which are converted to {folder}: that needs "
            f"{lacking(total, free)} are free there"
        )
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        tensors = _load(file)
        name = ADAPTER if file.name == PICKLED_ADAPTER else SINGLE
        if len(files) > 1:
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
            if found := _OS_ERROR.search(str(error)):
                # The disk takes no more; the file is not to blame.
                raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
            raise _unreadable(file, error) from error
        weight_map |= dict.fromkeys(tensors, name)
        done += file.stat().st_size
        if progress is not None:
            progress(done, total)
    if len(files) > 1:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}, indent=2))


def _are_tensors(content: Any) -> bool:
    """Whether it is a dict of tensors by name."""
    return isinstance(content, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        for name, tensor in content.items()
    )


def _load(file: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, each once: of several names of one tensor (a tied head), the first."""
    try:
        _check_stored(file)
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files of torch before 1.6 cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # What a damaged pickle runs into depends on where it is damaged.
        raise _unreadable(file, error) from error
    if not _are_tensors(content):
        within = content if isinstance(content, dict) else {}
        for key, inner in within.items():
            if _are_tensors(inner) and inner:
                raise SourceError(
                    f"{file} is no dict of tensors, which are below {key!r} of it; write them "
                    'alone: python -c "import sys, torch; file, key = sys.argv[1:]; '
                    "torch.save(torch.load(file, weights_only=True)[key], file)"
                    f'" {shlex.quote(str(file))} {shlex.quote(str(key))}'
                )
        raise SourceError(
            f"{file} is no dict of tensors; save the model again with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    most = _MOST_VIEWS * file.stat().st_size
    total = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if total > most:
        raise SourceError(
            f"{file} describes {total} bytes of tensors, more than {_MOST_VIEWS} times its size; "
            "its tensors repeat each other: save the model again with safe_serialization=True"
        )
    seen: set[tuple[Any, ...]] = set()
    storages: set[int] = set()
    tensors = {}
    for name, tensor in content.items():
        storage = tensor.untyped_storage().data_ptr()
        look = (storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and look in seen:
            continue
        seen.add(look)
        # Parts of one storage are different tensors; safetensors wants each with its own.
        tensors[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    return tensors


def _check_stored(file: Path) -> None:
    """Refuse an archive that torch did not write: it maps what is compressed as if it were not, and
    the tensors would be other numbers."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            is_stored = member.compress_type == zipfile.ZIP_STORED
            if not is_stored or member.compress_size != member.file_size:
                raise ValueError(f"{member.filename[:80]} is compressed, which torch never writes")


def _unreadable(file: Path, error: Exception) -> SourceError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return SourceError(
        f"{file} cannot be read as tensors alone, and other objects are never unpickled: {why}"
    )
