"""Checkpoints of DeepSpeed's ZeRO: one 16-bit model, or float32 partitions of every process.

With ZeRO-1 and 2, ``mp_rank_00_model_states.pt`` holds the whole model. With ZeRO-3 each process
keeps a part of every parameter: the parts lie one after the other in the flat groups of its
``optim_states.pt``, in the order of ``param_shapes``, each ceil(numel / processes) long; frozen
parameters are in ``model_states.pt``
(https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/utils/zero_to_fp32.py).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.checkpoint import FileStamp, item_size, stamp
from mergeops.errors import SourceError
from mergeops.recover.sharded import Place, ShardBox, ShardedModel, ShardedTensor, check_covered
from mergeops.recover.torch_files import DTYPES, PickledTensor, read_torch_file

LATEST = "latest"
LATEST_UNIVERSAL = "latest_universal"
"""Names the universal checkpoint that was made of it."""
MODEL = "mp_rank_00_model_states.pt"
PARTITION = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(model|optim)_states\.pt")
EXPERT = re.compile(r"layer_(-?\d+)_expert_(\d+)_mp_rank_(\d+)_model_states\.pt")
UNIVERSAL = "zero"
"""In a universal checkpoint, the folder with a folder for each parameter."""
UNIVERSAL_FILE = "fp32.pt"
OTHER_MODEL = re.compile(r"mp_rank_(?!00_)\d+_model_states\.pt|layer_\d+-model_.*\.pt")

_DEEPSPEED: dict[str, Callable[..., Any] | None] = dict.fromkeys(
    (
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.utils.tensor_fragment.fragment_address",
    )
)


def open_zero(path: Path) -> ShardedModel:
    """The model's tensors in a ``global_stepN`` of DeepSpeed.

    Raises:
        SourceError: the files of a process are missing, a file is cut, damaged or hostile, or they
            hold what this does not read: experts, tensor or pipeline parallelism.
    """
    names = sorted(entry.name for entry in path.iterdir())
    for name in names:
        expert = EXPERT.fullmatch(name)
        if OTHER_MODEL.fullmatch(name) or (expert is not None and int(expert[3])):
            raise SourceError(
                f"{path} has {name}: tensor or pipeline parallelism is not read; convert it with "
                "DeepSpeed's ds_to_universal.py, and save the model from there"
            )
    if UNIVERSAL in names and (path / UNIVERSAL).is_dir():
        return _universal(path, names)
    if MODEL in names:
        return _whole(path, _experts(path, names))[0]
    if any(map(EXPERT.fullmatch, names)):
        raise SourceError(
            f"{path} has files of experts, but no {MODEL}, which holds the rest of the model: the "
            "save did not finish; use an earlier checkpoint of the run"
        )
    return _partitions(path, names)


def _experts(path: Path, names: Sequence[str]) -> list[str]:
    """The files of experts, of which none is missing."""
    layers: dict[int, set[int]] = {}
    files = [(match, name) for name in names if (match := EXPERT.fullmatch(name))]
    for match, _ in files:
        layers.setdefault(int(match[1]), set()).add(int(match[2]))
    most = max((max(experts) for experts in layers.values()), default=-1)
    for layer, experts in sorted(layers.items()):
        for expert in range(most + 1):
            if expert not in experts:
                raise SourceError(
                    f"{path}: layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt is missing, "
                    "and with it an expert; copy the files of every node into it"
                )
    return [name for _, name in files]


def _universal(path: Path, names: Sequence[str]) -> ShardedModel:
    """What ds_to_universal.py made: each parameter in float32, in a file of its own; frozen ones
    and buffers are where they were.

    Of ZeRO-3 the files hold flat numbers, padded, whose shapes are in the files of the processes.
    """
    tensors: dict[str, ShardedTensor] = {}
    stamps: dict[str, FileStamp] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    states: Mapping[str, Any] = {}
    where = path
    try:
        if MODEL in names:
            whole, states = _whole(path, _experts(path, names))
            tensors, stamps = dict(whole.tensors), dict(whole.stamps)
        elif files := _partition_files(path, names)["model"]:
            _check_all_there(path, {"model": files})
            models = []
            for rank in range(len(files)):
                where = path / files[rank]
                models.append(read_torch_file(path, where.name, _DEEPSPEED))
                stamps[where.name] = stamp(where)
            states, where = models[0], path / files[0]
            tensors = {tensor.name: tensor for tensor in _untrained(path, models)}
            for group in states["param_shapes"]:
                shapes |= group
        there = {entry.name for entry in (path / UNIVERSAL).iterdir() if entry.is_dir()}
        for name in sorted(there | shapes.keys()):
            file = f"{UNIVERSAL}/{name}/{UNIVERSAL_FILE}"
            if name not in there or not (path / file).is_file():
                raise SourceError(
                    f"{path / file} is missing: the conversion to a universal checkpoint did not "
                    "finish; run ds_to_universal.py again"
                )
            where = path / file
            content = read_torch_file(path, file, {})
            if isinstance(content, PickledTensor):
                tensors[name] = _partitioned(name, shapes[name], [[_checked(where, content)]], 0)
            else:
                tensors[name] = _one_piece(path, name, content["param"])
            stamps[file] = stamp(where)
        # For the second name of a tied parameter the conversion writes the 16-bit copy.
        tensors |= _second_names(tensors, states)
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        raise _damaged(where, error) from error
    for tensor in tensors.values():
        check_covered(path, tensor)
    if not tensors:
        raise SourceError(f"{path / UNIVERSAL} holds no parameter; run ds_to_universal.py again")
    return ShardedModel(path, tensors, stamps)


def _second_names(
    tensors: Mapping[str, ShardedTensor], states: Mapping[str, Any]
) -> dict[str, ShardedTensor]:
    """Tied parameters under their second names, which model_states.pt lists."""
    shared = (states.get("shared_params") or {}).items()
    return {
        str(name): dataclasses.replace(tensors[first], name=str(name))
        for name, first in shared
        if first in tensors
    }


def _whole(path: Path, experts: Sequence[str]) -> tuple[ShardedModel, Mapping[str, Any]]:
    """The 16-bit model, and all that its file holds."""
    tensors: dict[str, ShardedTensor] = {}
    states: Mapping[str, Any] = {}
    for file in (MODEL, *experts):
        try:
            content = read_torch_file(path, file, _DEEPSPEED)
            if file == MODEL:
                states, content = content, content["module"]
            tensors |= {
                name: _one_piece(path, name, tensor)
                for name, tensor in content.items()
                if isinstance(tensor, PickledTensor)
            }
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise _damaged(path / file, error) from error
    empty = [name for name, tensor in tensors.items() if not tensor.numel]
    if empty or not tensors:
        what = f"{empty[0]} without elements, a placeholder" if empty else "no tensors"
        raise SourceError(
            f"{path / MODEL} holds {what}: the weights were not gathered when it was saved; name "
            "the directory of the optim_states.pt files, in which ZeRO-3 keeps them"
        )
    stamps = {file: stamp(path / file) for file in (MODEL, *experts)}
    return ShardedModel(path, tensors, stamps), states


def _partition_files(path: Path, names: Sequence[str]) -> dict[str, dict[int, str]]:
    """The files of the processes: ``model`` or ``optim`` -> rank -> name."""
    files: dict[str, dict[int, str]] = {"model": {}, "optim": {}}
    for name in names:
        if match := PARTITION.fullmatch(name):
            rank, model_rank, kind = int(match[1]), int(match[2]), match[3]
            if model_rank:
                raise SourceError(
                    f"{path} has {name}: tensor parallelism is not read; convert it with "
                    "DeepSpeed's ds_to_universal.py, and save the model from there"
                )
            files[kind][rank] = name
    return files


def _partitions(path: Path, names: Sequence[str]) -> ShardedModel:
    files = _partition_files(path, names)
    where = path
    try:
        processes = _processes(path, files)
        models, groups = [], []
        for rank in range(processes):
            where = path / files["model"][rank]
            models.append(read_torch_file(path, where.name, _DEEPSPEED))
            where = path / files["optim"][rank]
            states = read_torch_file(path, where.name, _DEEPSPEED)["optimizer_state_dict"]
            counts = states["partition_count"]
            count = int(max(counts) if isinstance(counts, list) else counts)
            if count != processes:
                raise SourceError(
                    f"{where} is of {count} processes, but the files of {processes} are there: "
                    "copy those of every node into it, and remove those of an earlier run"
                )
            if "fp32_flat_groups" not in states:
                raise SourceError(
                    f"{path} has no {MODEL}, but {where.name} has no fp32_flat_groups, so it is of "
                    "ZeRO-1 or 2: the save did not finish; use an earlier checkpoint of the run"
                )
            groups.append([_checked(where, group) for group in states["fp32_flat_groups"]])
        where = path / files["model"][0]
        tensors = {tensor.name: tensor for tensor in _tensors(path, models, groups)}
        tensors |= _second_names(tensors, models[0])
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        raise _damaged(where, error) from error
    for tensor in tensors.values():
        check_covered(path, tensor)
    stamps = {name: stamp(path / name) for kind in files.values() for name in kind.values()}
    return ShardedModel(path, tensors, stamps)


def _processes(path: Path, files: Mapping[str, Mapping[int, str]]) -> int:
    """How many processes wrote the files, none of which is missing."""
    if not files["optim"]:
        raise SourceError(
            f"{path} has neither {MODEL} nor optim_states.pt files of processes, in which ZeRO-3 "
            "keeps the weights: the save did not finish; use an earlier checkpoint of the run"
        )
    return _check_all_there(path, files)


def _check_all_there(path: Path, files: Mapping[str, Mapping[int, str]]) -> int:
    """How many processes there were, of each of which every kind of file is there."""
    processes = max(rank for ranks in files.values() for rank in ranks) + 1
    for kind, ranks in files.items():
        missing = [rank for rank in range(processes) if rank not in ranks]
        if missing:
            raise SourceError(
                f"{path}: zero_pp_rank_{missing[0]}_mp_rank_00_{kind}_states.pt is missing, and "
                "with it a part of every tensor; copy the files of every node into it"
            )
    return processes


def _tensors(
    path: Path, models: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[PickledTensor]]
) -> Iterator[ShardedTensor]:
    first = models[0]
    processes = len(models)
    yield from _untrained(path, models)
    offset = 0
    for shapes in first["param_shapes"]:
        for name, shape in shapes.items():
            yield _partitioned(name, shape, groups, offset)
            offset += -(-math.prod(shape) // processes)
    there = sum(group.shape[0] for group in groups[0])
    if offset != there:
        raise ValueError(f"its parameters are {offset} numbers of a process, {there} are stored")


def _untrained(path: Path, models: Sequence[Mapping[str, Any]]) -> Iterator[ShardedTensor]:
    """Buffers and frozen parameters, which model_states.pt of ZeRO-3 holds."""
    first = models[0]
    for name in first["buffer_names"]:
        if isinstance(first["module"].get(name), PickledTensor):
            yield _one_piece(path, name, first["module"][name])
    for name, shape in (first.get("frozen_param_shapes") or {}).items():
        parts = [[model["frozen_param_fragments"][name]] for model in models]
        yield _partitioned(name, shape, parts, 0)


def _partitioned(
    name: str, shape: tuple[int, ...], groups: Sequence[Sequence[PickledTensor]], offset: int
) -> ShardedTensor:
    """A parameter of which each process has a part, ``offset`` behind the begin of its groups."""
    numel = math.prod(shape)
    length = -(-numel // len(groups))
    dtypes = {group.dtype for ranks in groups for group in ranks}
    if len(dtypes) != 1:
        raise ValueError(f"tensor {name} is of the formats {', '.join(sorted(dtypes))}")
    [dtype] = dtypes
    pieces = []
    for rank, ranks in enumerate(groups):
        begin, end, before = rank * length, min((rank + 1) * length, numel), 0
        for group in ranks:
            low = max(offset, before)
            high = min(offset + end - begin, before + group.shape[0])
            if low < high:
                start = group.place.start + (low - before) * item_size(dtype)
                at = (begin + low - offset,)
                pieces.append(ShardBox(at, (high - low,), Place(group.place.file, start)))
            before += group.shape[0]
    return ShardedTensor(name, dtype, shape, tuple(pieces), is_flat=True)


def _one_piece(path: Path, name: str, tensor: PickledTensor) -> ShardedTensor:
    if tensor.dtype not in DTYPES.values():
        raise SourceError(
            f"{path}: tensor {name} is {tensor.dtype}, which mergeops does not read; allowed: "
            f"{', '.join(DTYPES)}"
        )
    place = tensor.place if tensor.shape else Place(tensor.place.file, tensor.place.start)
    shape = tensor.shape or (1,)
    return ShardedTensor(
        name, tensor.dtype, tensor.shape, (ShardBox((0,) * len(shape), shape, place),)
    )


def _checked(where: Path, group: Any) -> PickledTensor:
    if not isinstance(group, PickledTensor) or len(group.shape) != 1:
        raise ValueError("a group is no flat tensor")
    if group.dtype not in DTYPES.values() or group.place.strides != (1,):
        raise ValueError(f"a group is {group.dtype} with strides {group.place.strides}")
    return group


def _damaged(where: Path, error: Exception) -> SourceError:
    why = " ".join(str(error).split())[:120]
    return SourceError(
        f"{where} is no whole checkpoint of DeepSpeed ({type(error).__name__}: {why}); use an "
        "earlier checkpoint of the run"
    )
