"""A checkpoint directory: which safetensors files make it up, and where each tensor is."""

from __future__ import annotations

import contextlib
import json
import os
import stat as file_kind
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from mergeops.checkpoint.header import SLICES_NAME, StoredTensor, read_header
from mergeops.checkpoint.quantised.codes import CodedTensor
from mergeops.checkpoint.quantised.codes_and_scales import numbers_in
from mergeops.checkpoint.quantised.recognition import (
    ORIGINAL,
    Quantisation,
    gguf_instead,
    recognise,
)
from mergeops.errors import SourceError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_ADAPTER = "adapter_model.bin"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
MOST_JSON_BYTES = 2**28
"""Ten times the largest tokenizer.json of the hub."""
MOST_JSON_LEVELS = 64
"""Code that goes through nested values calls itself; files of models have a handful of levels."""
_NESTS = (dict, list)


@dataclass(frozen=True)
class FileStamp:
    """What a file looked like when it was planned with; another stamp is another file."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Moves with every change, and nobody can set it back."""
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The stamp in a file's status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a checkpoint."""

    path: Path
    tensors: dict[str, StoredTensor]
    """In the order of the data, file by file."""
    stamps: dict[str, FileStamp]
    """File name -> stamp, for every weight file."""
    coded: Mapping[str, CodedTensor] = field(default_factory=dict)
    """Tensor -> how its numbers are computed, where the files hold codes."""


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, by PEFT's own config."""
    return (directory / ADAPTER_CONFIG).is_file()


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a full checkpoint: ``model.safetensors``, or what the index names.

    Raises:
        SourceError: there are none, or two sets of them, or one is missing, or the index points
            outside the directory.
    """
    if not path.is_dir():
        raise SourceError(f"{path} is not a directory")
    if (path / SINGLE).exists():
        _check_no_others(path)
        return [path / SINGLE]
    if (path / INDEX).exists():
        return [path / name for name in sorted(set(weight_map(path / INDEX).values()))]
    raise SourceError(_why_no_weights(path))


def open_checkpoint(path: Path) -> Checkpoint:
    """Read and check all headers of a full checkpoint; no tensor data is read.

    A quantised one has the tensors that its codes and scales stand for.

    Raises:
        SourceError: as ``weight_files`` and ``read_header``, or index and files disagree, or the
            weights are codes of a kind that is not read.
    """
    checkpoint = _open_stored(path)
    quantisation = _recognised(checkpoint)
    if quantisation is None:
        return checkpoint
    if not quantisation.is_readable:
        raise SourceError(
            f"{path} is quantised, {quantisation.told}: its codes are no numbers that can be "
            f"merged; {quantisation.way_out}"
        )
    try:
        tensors, coded = numbers_in(_config_beside(path), checkpoint.tensors)
    except SourceError as error:
        raise SourceError(
            f"{path} is quantised, {quantisation.told}, in a way that is not read: {error}; "
            f"{ORIGINAL}"
        ) from error
    return replace(checkpoint, tensors=tensors, coded=coded)


def check_filled(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse tensors without values, which stand for such as another process held.

    Raises:
        SourceError: there are some; says how many, and what to do.
    """
    empty = [name for name, stored in tensors.items() if stored.shape == (0,)]
    if empty:
        raise SourceError(
            f"{path} has {len(empty)} of {len(tensors)} tensors without any values, e.g. "
            f"{empty[0]}, as DeepSpeed ZeRO-3 leaves them in a save that did not gather them "
            "(stage3_gather_16bit_weights_on_model_save); take the global_step folder beside it: "
            "`mergeops recover DIR OUT --base BASE`, or another checkpoint"
        )


def quantisation_of(path: Path) -> Quantisation | None:
    """How the weights of a full checkpoint are coded; None where they are simply numbers.

    Raises:
        SourceError: as ``weight_files`` and ``read_header``.
    """
    return _recognised(_open_stored(path))


def _recognised(checkpoint: Checkpoint) -> Quantisation | None:
    dtypes = {name: stored.dtype for name, stored in checkpoint.tensors.items()}
    return recognise(_config_beside(checkpoint.path), dtypes)


def _config_beside(path: Path) -> dict[str, Any]:
    return read_json(path / CONFIG) if (path / CONFIG).is_file() else {}


def _open_stored(path: Path) -> Checkpoint:
    """The headers of a full checkpoint as they are."""
    files = weight_files(path)
    for file in files:
        if not file.exists():
            raise SourceError(f"{path}: {file.name} is missing, but {INDEX} names it")
    checkpoint = read_headers(path, [file.name for file in files])
    if files[0].name != SINGLE:
        _check_index(path, checkpoint.tensors)
    return checkpoint


def read_headers(path: Path, files: list[str]) -> Checkpoint:
    """The headers of these files of a directory.

    Raises:
        SourceError: as ``read_header``, or a tensor is there twice, or there is none.
    """
    tensors: dict[str, StoredTensor] = {}
    stamps = {}
    for file in files:
        stamps[file] = stamp(path / file)
        for name, tensor in read_header(path / file).items():
            if name in tensors:
                raise SourceError(f"{path}: tensor {name} is in {tensors[name].file} and {file}")
            tensors[name] = tensor
    if not tensors:
        raise SourceError(f"{path} holds no tensors")
    return Checkpoint(path, tensors, stamps)


def stamp(file: Path) -> FileStamp:
    """The file's stamp now.

    Raises:
        SourceError: it is gone.
    """
    try:
        status = os.stat(file)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
    return FileStamp.of(status)


def read_small(path: Path) -> bytes:
    """What one of a source's small files holds.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a source's file.

    Raises:
        SourceError: the file is missing, too large or no JSON object, or nested too deeply.
    """
    try:
        facts = path.stat()
        if not file_kind.S_ISREG(facts.st_mode):
            raise SourceError(f"{path} is no regular file")
        if facts.st_size > MOST_JSON_BYTES:
            raise SourceError(f"{path} has {facts.st_size} bytes; allowed are {MOST_JSON_BYTES}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} is no JSON object")
    if is_too_deep(content):
        raise SourceError(f"{path} is nested more than {MOST_JSON_LEVELS} levels deep")
    return content


def is_too_deep(content: Any) -> bool:
    """Whether JSON types are nested more than ``MOST_JSON_LEVELS`` deep."""
    level: list[Any] = [content] if isinstance(content, dict | list) else []
    for _ in range(MOST_JSON_LEVELS + 1):
        # A tokenizer has 100,000 pairs: this is one expression for the sake of time.
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _NESTS)
        ]
    return bool(level)


def weight_map(index: Path, ending: str = ".safetensors") -> dict[str, str]:
    """Tensor -> file, as an index says.

    Raises:
        SourceError: it has none, or names a file outside the directory or of another kind.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise SourceError(f"{index} has no weight_map")
    for tensor, name in files.items():
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise SourceError(
                f"{index} puts tensor {tensor} into {name!r}; only a file name inside the "
                "directory is allowed"
            )
        if not name.endswith(ending):
            raise SourceError(f"{index} puts tensor {tensor} into {name!r}, no safetensors file")
    return files


def _check_no_others(path: Path) -> None:
    """Beside a single file there is no index of other files that are there, too."""
    named: set[str] = set()
    if (path / INDEX).exists():
        # What is wrong with an index that nobody needs is of no interest.
        with contextlib.suppress(SourceError):
            named = set(weight_map(path / INDEX).values()) - {SINGLE}
    others = sorted(name for name in named if (path / name).exists())
    if others:
        raise SourceError(
            f"{path} holds two sets of weights: {SINGLE}, and {len(others)} file(s) that {INDEX} "
            f"names, e.g. {others[0]}; a model was saved over another, and transformers loads "
            f"{SINGLE}, be it the older; remove the set that is not meant: {SINGLE}, or {INDEX}"
        )


def _check_index(path: Path, tensors: dict[str, StoredTensor]) -> None:
    files = weight_map(path / INDEX)
    for name, file in files.items():
        if name not in tensors or tensors[name].file != file:
            actual = f"it is in {tensors[name].file}" if name in tensors else "it is in none"
            raise SourceError(f"{path}: {INDEX} puts tensor {name} into {file}, but {actual}")
    extra = tensors.keys() - files.keys()
    if extra:
        name = min(extra)
        raise SourceError(
            f"{path}: {INDEX} does not list {len(extra)} tensor(s) of the files, e.g. {name} in "
            f"{tensors[name].file}"
        )


def _why_no_weights(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    if ADAPTER_CONFIG in names or ADAPTER in names:
        return (
            f"{path} holds a LoRA adapter, no full model; say which model it applies to with the "
            "source's base"
        )
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth")) and n.startswith("pytorch")]
    if pickled:
        return (
            f"{path} has {pickled[0]}, but mergeops reads safetensors only; convert it once with "
            "transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    if told := gguf_instead(names):
        return f"{path} {told}"
    for name in (SINGLE, INDEX):
        if name in names:
            return f"{path / name} is a link to {os.readlink(path / name)}, which is not there"
    if any(SLICES_NAME.fullmatch(name) for name in names):
        return (
            f"{path} holds slices of tensors, a file for each process of a sharded training; put "
            f"them together with `mergeops recover {path} OUT --base BASE`, with BASE the model "
            "that was trained"
        )
    other = [n for n in names if n.endswith(".safetensors")]
    hint = f"; it has {', '.join(other[:3])}" if other else ""
    return f"{path} has neither {SINGLE} nor {INDEX}{hint}"
