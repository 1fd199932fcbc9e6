"""Files of one process each, in which FSDP's DTensors were saved as they were.

``model_world_size_W_rank_R.pt`` of verl and ``pytorch_model_fsdp_0_rankR.bin`` of accelerate hold
of each tensor the part of process R, and how it is laid out over the mesh of processes
(https://github.com/volcengine/verl/blob/main/verl/model_merger/fsdp_model_merger.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergeops.checkpoint import item_size, stamp
from mergeops.errors import SourceError
from mergeops.recover.sharded import Place, ShardBox, ShardedModel, ShardedTensor, check_covered
from mergeops.recover.torch_files import DTYPES, PickledTensor, read_torch_file
from mergeops.recover.unpickling import PickledRecord

NAME = re.compile(
    r"model_world_size_(?P<world>\d+)_rank_(?P<rank>\d+)\.pt"
    r"|pytorch_model_fsdp(?:_0)?_rank(?P<process>\d+)\.bin"
)
PLACEMENTS = "torch.distributed.tensor.placement_types."
_DISTRIBUTED: dict[str, Callable[..., Any] | None] = dict.fromkeys(
    [
        "torch.distributed.tensor.DTensor",
        "torch.distributed.tensor._api.DTensor",
        "torch.distributed._tensor.api.DTensor",
        "torch.distributed.tensor._dtensor_spec.DTensorSpec",
        "torch.distributed.tensor._dtensor_spec.ShardOrderEntry",
        "torch.distributed.tensor._dtensor_spec.TensorMeta",
        "torch.distributed._tensor.placement_types.DTensorSpec",
        "torch.distributed._tensor.placement_types.TensorMeta",
        "torch.distributed.device_mesh.DeviceMesh",
        "torch.distributed._mesh_layout._MeshLayout",
        "torch.distributed._mesh_layout._FlatLayout",
        *(PLACEMENTS + name for name in ("Shard", "Replicate", "Partial", "_StridedShard")),
        "torch.distributed._tensor.placement_types.Shard",
        "torch.distributed._tensor.placement_types.Replicate",
    ]
)


def open_process_files(path: Path) -> ShardedModel:
    """The tensors of a directory of ``model_world_size_W_rank_R.pt``.

    Raises:
        SourceError: the file of a process is missing, damaged or hostile, or a tensor is laid out
            in a way that is not read.
    """
    matches = [match for entry in sorted(path.iterdir()) if (match := NAME.fullmatch(entry.name))]
    sizes = {match["world"] for match in matches}
    if len(sizes) != 1:
        listed = ", ".join(sorted(size or "other" for size in sizes))
        raise SourceError(
            f"{path} holds files of runs of {listed} processes; remove those of the others"
        )
    files = {int(match["rank"] or match["process"]): match[0] for match in matches}
    world = int(sizes.pop() or max(files) + 1)
    missing = [rank for rank in range(world) if rank not in files]
    if missing:
        name = re.sub(r"\d+(\.\w+)$", rf"{missing[0]}\1", matches[0][0])
        raise SourceError(
            f"{path}: {name} is missing, and with it a part of every tensor; copy the files of "
            "every node into it"
        )
    where = path
    try:
        parts: dict[str, list[Any]] = {}
        for rank in range(world):
            where = path / files[rank]
            for name, value in read_torch_file(path, files[rank], _DISTRIBUTED).items():
                parts.setdefault(name, []).append(value)
        tensors = {name: _tensor(path, name, values) for name, values in parts.items()}
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        why = " ".join(str(error).split())[:120]
        raise SourceError(
            f"{where} is no whole file of a process's tensors ({type(error).__name__}: {why}); use "
            "an earlier checkpoint of the run"
        ) from error
    for tensor in tensors.values():
        check_covered(path, tensor)
    return ShardedModel(path, tensors, {name: stamp(path / name) for name in files.values()})


def _tensor(path: Path, name: str, values: Sequence[Any]) -> ShardedTensor:
    first = values[0]
    if isinstance(first, PickledTensor):
        _check_copies(path, name, values)
        shape, pieces = first.shape, [_piece((0,) * len(first.shape), first)]
        local = first
    else:
        spec = first.field("_spec")
        shape = tuple(spec.field("tensor_meta").arguments[0])
        mesh = _mesh(spec.field("mesh"), len(values))
        placements = [_axis(path, name, placed) for placed in spec.field("placements")]
        local = first.field("_local_tensor")
        found: dict[tuple[int, ...], ShardBox] = {}
        for rank, value in enumerate(values):
            part = value.field("_local_tensor")
            offset, size = _box(shape, placements, mesh, _coordinate(mesh, rank))
            if part.shape != size or part.dtype != local.dtype:
                raise SourceError(
                    f"{path}: process {rank} has {part.dtype} {list(part.shape)} of tensor {name}, "
                    f"not {local.dtype} {list(size)}: the files are of several saves"
                )
            if math.prod(size):
                found.setdefault(offset, _piece(offset, part))
        pieces = list(found.values())
    if local.dtype not in DTYPES.values():
        raise SourceError(
            f"{path}: tensor {name} is {local.dtype}, which mergeops does not read; allowed: "
            f"{', '.join(DTYPES)}"
        )
    return ShardedTensor(name, local.dtype, shape, tuple(pieces))


def _check_copies(path: Path, name: str, values: Sequence[Any]) -> None:
    """Refuse plain tensors that are not the same in every process: parts of nobody knows what."""
    first = values[0]
    for value in values[1:]:
        if not isinstance(value, PickledTensor) or (value.dtype, value.shape) != (
            first.dtype,
            first.shape,
        ):
            break
        if not _is_same(path, first, value):
            break
    else:
        return
    raise SourceError(
        f"{path}: tensor {name} differs between the processes, and the files do not say how they "
        "are parts of the whole; save with SHARDED_STATE_DICT, or with FSDP2"
    )


def _is_same(path: Path, one: PickledTensor, other: PickledTensor) -> bool:
    if one.place.strides != other.place.strides or one.dtype not in DTYPES.values():
        return False
    size = math.prod(one.shape) * item_size(one.dtype)
    with open(path / one.place.file, "rb") as a, open(path / other.place.file, "rb") as b:
        a.seek(one.place.start)
        b.seek(other.place.start)
        while size > 0:
            n = min(size, 1 << 22)
            if a.read(n) != b.read(n):
                return False
            size -= n
    return True


def _piece(offset: tuple[int, ...], part: PickledTensor) -> ShardBox:
    if part.shape:
        return ShardBox(offset, part.shape, part.place)
    return ShardBox((0,), (1,), Place(part.place.file, part.place.start))


def _axis(path: Path, name: str, placed: Any) -> int | None:
    """The axis that a mesh's axis cuts; None where it holds copies."""
    kind = placed.name.rpartition(".")[2] if isinstance(placed, PickledRecord) else ""
    if kind == "Replicate":
        return None
    if kind == "Shard":
        axis = placed.field("dim")
        axis = placed.arguments[0] if axis is None else axis
        if isinstance(axis, int) and axis >= 0:
            return axis
    raise SourceError(
        f"{path}: tensor {name} is laid out by {kind or 'nothing known'}, which mergeops does not "
        "read; put the model together with `python -m verl.model_merger merge`"
    )


def _mesh(mesh: Any, world: int) -> tuple[int, ...]:
    """The sizes of the mesh's axes, whose processes are numbered row by row."""
    layout = mesh.field("_layout")
    axes = layout.field("axes") if layout is not None else None
    if axes is not None:
        sizes = tuple(math.prod(axis.field("shape")) for axis in axes)
    else:
        sizes = tuple((mesh.field("_mesh") or mesh.field("mesh")).shape)
    ranks = mesh.field("_flatten_rank_map")
    if math.prod(sizes) > world:
        raise ValueError(f"the files of {world} processes, of {math.prod(sizes)}")
    if math.prod(sizes) != world or (ranks is not None and tuple(ranks) != tuple(range(world))):
        raise ValueError(f"a mesh of {sizes} for {world} processes")
    return sizes


def _coordinate(mesh: tuple[int, ...], rank: int) -> tuple[int, ...]:
    at = []
    for size in reversed(mesh):
        rank, position = divmod(rank, size)
        at.append(position)
    return tuple(reversed(at))


def _box(
    shape: tuple[int, ...],
    placements: Sequence[int | None],
    mesh: Sequence[int],
    at: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a process's part begins and how large it is, cut as torch.chunk cuts."""
    offset, size = [0] * len(shape), list(shape)
    for axis, count, position in zip(placements, mesh, at, strict=True):
        if axis is None:
            continue
        step = -(-size[axis] // count)
        begin = min(position * step, size[axis])
        end = min(begin + step, size[axis])
        offset[axis] += begin
        size[axis] = end - begin
    return tuple(offset), tuple(size)
