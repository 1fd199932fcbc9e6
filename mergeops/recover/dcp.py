"""Folders of torch.distributed.checkpoint: ``.metadata`` and ``__RANK_N.distcp``.

``.metadata``, written last, is a pickle that says which box of which tensor lies at which bytes of
which file; each box is a file of ``torch.save`` there
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). FSDP's sharded saves, torchtitan
and torchtune write such folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mergeops.checkpoint import FileStamp, stamp
from mergeops.errors import SourceError
from mergeops.recover.sharded import (
    Payload,
    Place,
    ShardBox,
    ShardedModel,
    ShardedTensor,
    check_covered,
)
from mergeops.recover.torch_files import DTYPES, OTHER_DTYPES, read_torch_file, size_of
from mergeops.recover.unpickling import PickledRecord, plain_dict, unpickle

METADATA = ".metadata"
SUFFIX = ".distcp"
MOST_METADATA_BYTES = 1 << 30
NOT_THE_MODEL = (
    "optimizer",
    "optimizers",
    "optim",
    "optim_state",
    "optimizer_state_dict",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "dataloader",
    "train_state",
    "rng",
    "rng_state",
)
"""What trainers call the other parts of what they save, at the top of its tree."""

_CHECKPOINT = "torch.distributed.checkpoint.metadata."
# Where torch before 2.3 had two of them.
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata."
_KNOWN: dict[str, Callable[..., Any] | None] = {
    **dict.fromkeys(
        _CHECKPOINT + name
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    _SHARDED + "TensorProperties": None,
    _SHARDED + "MEM_FORMAT_ENCODING": None,
    "torch.distributed.checkpoint.filesystem._StorageInfo": None,
    "torch.distributed.checkpoint.filesystem._StoragePrefix": None,
    # Megatron keeps the plans of the processes in it.
    **dict.fromkeys(
        "torch.distributed.checkpoint.planner." + name
        for name in (
            "SavePlan",
            "WriteItem",
            "WriteItemType",
            "TensorWriteData",
            "BytesIOWriteData",
        )
    ),
    "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan": None,
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata": None,
    "torch.serialization._get_layout": None,
    "torch.Size": size_of,
    **{f"torch.{word}": None for word in (*DTYPES, *OTHER_DTYPES)},
    "pathlib.PosixPath": None,
    "pathlib.WindowsPath": None,
    "pathlib._local.PosixPath": None,
    "collections.OrderedDict": plain_dict,
}
"""Everything that torch and Megatron write into a ``.metadata``."""


def open_dcp(path: Path) -> ShardedModel:
    """The model's tensors in a folder of torch.distributed.checkpoint.

    Of a tree with a part named ``model``, that part, else what is no optimizer's or scheduler's.

    Raises:
        SourceError: ``.metadata`` or a file is missing, cut, damaged or hostile; a tensor is not
            whole; or there is no model in it.
    """
    where = path / METADATA
    if not where.is_file():
        raise SourceError(
            f"{path} has no {METADATA}, which is written last: the save did not finish; use an "
            "earlier checkpoint of the run"
        )
    content = _metadata(where)
    try:
        paths = content["planner_data"] if isinstance(content["planner_data"], dict) else {}
        names = _model_names(content["state_dict_metadata"], paths)
        if not names:
            raise SourceError(
                f"{path} holds no model, only "
                f"{', '.join(sorted(content['state_dict_metadata'])[:3])}; name the folder that "
                "the model was saved into"
            )
        places = _places(path, content["storage_data"], names)
        tensors = {
            name: _tensor(path, name, content["state_dict_metadata"][key], places.get(key, {}))
            for key, name in names.items()
        }
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise _damaged(where, error) from error
    for tensor in tensors.values():
        check_covered(path, tensor)
    return ShardedModel(path, tensors, _stamps(path, tensors), _unpack)


def stored_bytes(path: Path) -> dict[str, bytes]:
    """What a folder holds that is no tensor, as it is stored; nothing of it is unpickled.

    Raises:
        SourceError: as ``open_dcp``.
    """
    where = path / METADATA
    content = _metadata(where)
    try:
        kinds = content["state_dict_metadata"]
        ending = ".BytesStorageMetadata"
        keys = {key: key for key, what in kinds.items() if what.name.endswith(ending)}
        found = {}
        for key, places in _places(path, content["storage_data"], keys).items():
            for place in places.values():
                with open(path / place.file, "rb") as file:
                    file.seek(place.start)
                    found[key] = file.read(place.size)
                if len(found[key]) != place.size:
                    raise SourceError(f"{path / place.file} is cut: {key} is not whole")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise _damaged(where, error) from error
    return found


def _metadata(where: Path) -> Mapping[str, Any]:
    try:
        if where.stat().st_size > MOST_METADATA_BYTES:
            raise SourceError(f"{where} has more than {MOST_METADATA_BYTES} bytes")
        with open(where, "rb") as stream:
            read = unpickle(stream, _KNOWN, str(where))
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {error.strerror or error}") from error
    content = read.state if isinstance(read, PickledRecord) else None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict) for key in ("state_dict_metadata", "storage_data")
    ):
        raise _damaged(where, "it describes no checkpoint")
    return {"planner_data": None, **content}


def _model_names(described: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, str]:
    """Key of each tensor of the model -> its name there."""
    found, rest = {}, {}
    for key, what in described.items():
        if not what.name.endswith(".TensorStorageMetadata"):
            continue
        parts = tuple(str(part) for part in paths.get(key, (key,)) if isinstance(part, str | int))
        top = parts[0] if len(parts) > 1 else key.partition(".")[0]
        if "model" in parts[:-1]:
            found[key] = ".".join(parts[parts.index("model") + 1 :])
        elif top not in NOT_THE_MODEL:
            rest[key] = ".".join(parts)
    return found or rest


def _places(
    path: Path, stored: Mapping[Any, Any], names: Mapping[str, str]
) -> dict[str, dict[tuple[int, ...] | None, Payload]]:
    """Key -> first element of a box -> where the box lies."""
    places: dict[str, dict[tuple[int, ...] | None, Payload]] = {}
    for index, info in stored.items():
        key = index.field("fqn")
        if key not in names:
            continue
        if info.field("transform_descriptors"):
            raise SourceError(
                f"{path}: tensor {key} is stored through extensions of the writer, which mergeops "
                "does not undo; save without them"
            )
        file, start, size = (info.field(n) for n in ("relative_path", "offset", "length"))
        if not isinstance(file, str):
            raise ValueError(f"tensor {key} is in no file")
        if not _is_inside(file):
            raise SourceError(
                f"{path / METADATA} puts tensor {key} into {file!r}; only a file below the "
                "directory is allowed"
            )
        if not all(isinstance(n, int) and n >= 0 for n in (start, size)):
            raise ValueError(f"tensor {key} is at no bytes")
        offset = index.field("offset")
        places.setdefault(key, {})[offset] = Payload(file, start, size)
    return places


def _is_inside(file: str) -> bool:
    parts = PurePosixPath(file).parts
    return bool(parts) and not file.startswith("/") and ".." not in parts and "\0" not in file


def _tensor(
    path: Path, name: str, described: Any, places: Mapping[tuple[int, ...] | None, Payload]
) -> ShardedTensor:
    shape = described.field("size")
    named = described.field("properties").state
    # torch before 2.1 kept the fields by name.
    word = (named["dtype"] if isinstance(named, dict) else named[0]).name.removeprefix("torch.")
    if word not in DTYPES:
        raise SourceError(
            f"{path}: tensor {name} is {word}, which mergeops does not read; allowed: "
            f"{', '.join(DTYPES)}"
        )
    if not isinstance(shape, tuple):
        raise ValueError(f"tensor {name} has no size")
    pieces = []
    for chunk in described.field("chunks"):
        offset, size = chunk.field("offsets"), chunk.field("sizes")
        if 0 in size:
            continue
        place = places.get(offset)
        if place is None and len(places) == 1 and not any(offset):
            [place] = places.values()
        if place is None:
            raise SourceError(
                f"{path}: tensor {name} has a piece at {list(offset)} that is in no file; use an "
                "earlier checkpoint of the run"
            )
        pieces.append(ShardBox(offset or (0,), size or (1,), place))
    return ShardedTensor(name, DTYPES[word], shape, tuple(pieces))


def _stamps(path: Path, tensors: Mapping[str, ShardedTensor]) -> dict[str, FileStamp]:
    """The stamp of each file, after its size was found to hold what it should."""
    stamps = {METADATA: stamp(path / METADATA)}
    for tensor in tensors.values():
        for piece in tensor.pieces:
            place = piece.place
            assert isinstance(place, Payload)
            if place.file not in stamps:
                if not os.path.isfile(path / place.file):
                    raise SourceError(
                        f"{path}: {place.file} is missing, in which a part of tensor {tensor.name} "
                        "is; copy the files of every process into it"
                    )
                stamps[place.file] = stamp(path / place.file)
            if place.start + place.size > stamps[place.file].size:
                raise SourceError(
                    f"{path / place.file} has {stamps[place.file].size} bytes, but tensor "
                    f"{tensor.name} lies at bytes {place.start} to {place.start + place.size}: the "
                    "save did not finish, or the file was cut; use an earlier checkpoint of the run"
                )
    return stamps


def _unpack(path: Path, payload: Payload, dtype: str, shape: tuple[int, ...]) -> Place:
    """Find the elements of a box in its file.

    Raises:
        SourceError: it is damaged, or not the box that ``.metadata`` says.
    """
    found = read_torch_file(path, payload.file, {}, payload.start, payload.size)
    seen = (getattr(found, "dtype", type(found).__name__), getattr(found, "shape", None))
    if seen[0] != dtype or (seen[1] or (1,)) != shape:
        raise SourceError(
            f"{path / payload.file} has at byte {payload.start} {seen[0]} {list(seen[1] or ())}, "
            f"but {METADATA} says {dtype} {list(shape)}: the folder holds files of several saves; "
            "use another checkpoint of the run"
        )
    place: Place = found.place
    return place if seen[1] else Place(place.file, place.start)


def _damaged(where: Path, error: object) -> SourceError:
    why = " ".join(str(error).split())[:120]
    return SourceError(f"{where} is damaged ({why}); use an earlier checkpoint of the run")
