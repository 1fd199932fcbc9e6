"""Files in DeepSpeed's layout, made from a model's tensors by the layout's own rules.

DeepSpeed is no dependency of the tests; ``test_zero.py`` compares with it where it is installed.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import math
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def _deepspeed() -> Iterator[dict[str, Any]]:
    """Modules by whose names the classes of the files are pickled, for the block."""
    made: dict[str, Any] = {}

    class ZeroStageEnum(enum.IntEnum):
        weights = 3
        gradients = 2

    class LossScaler:
        def __init__(self) -> None:
            self.cur_scale = 1.0

    modules = {}
    for place, cls in (
        ("deepspeed.runtime.zero.config", ZeroStageEnum),
        ("deepspeed.runtime.fp16.loss_scaler", LossScaler),
    ):
        cls.__module__, cls.__qualname__ = place, cls.__name__
        for end in range(1, place.count(".") + 2):
            package = ".".join(place.split(".")[:end])
            modules.setdefault(package, types.ModuleType(package))
        setattr(modules[place], cls.__name__, cls)
        made[cls.__name__] = cls
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_zero3(
    folder: Path,
    tensors: Mapping[str, Tensor],
    processes: int,
    *,
    frozen: str = "",
    groups: int = 1,
) -> Path:
    """A run's directory with ``latest`` and ``global_step2`` of ZeRO-3.

    Args:
        folder: the directory.
        tensors: the trained weights.
        processes: how many each tensor is divided among.
        frozen: a name whose tensor was not trained.
        groups: how many flat groups of each process; a parameter may lie in two.
    """
    place = folder / "global_step2"
    place.mkdir(parents=True)
    trained = {name: tensor for name, tensor in tensors.items() if name != frozen}
    shapes = OrderedDict((name, tensor.shape) for name, tensor in trained.items())
    for rank in range(processes):
        flat = torch.cat([_part(tensor, rank, processes) for tensor in trained.values()])
        states = {
            "module": OrderedDict((name, torch.empty(0)) for name in tensors),
            "buffer_names": [],
            "param_shapes": [shapes],
            "frozen_param_shapes": {frozen: tensors[frozen].shape} if frozen else None,
            "frozen_param_fragments": {frozen: _part(tensors[frozen], rank, processes)}
            if frozen
            else None,
            "shared_params": {},
            "ds_version": "0.19.8",
        }
        torch.save(states, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        cuts = [flat.numel() * i // groups for i in range(groups + 1)]
        parts = [flat[a:b].clone() for a, b in itertools.pairwise(cuts)]
        with _deepspeed() as classes:
            optimizer = {
                "zero_stage": classes["ZeroStageEnum"].weights,
                "loss_scaler": classes["LossScaler"](),
                "partition_count": processes,
                "fp32_flat_groups": parts,
                "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones_like(flat)}}},
            }
            name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.19.8"}, place / name)
    (folder / "latest").write_text("global_step2")
    return folder


def write_zero2(
    folder: Path, tensors: Mapping[str, Tensor], shared: Mapping[str, str] | None = None
) -> Path:
    """A run's directory with ``latest`` and ``global_step2`` of ZeRO-2: the model's file only.

    Args:
        folder: the directory.
        tensors: the weights.
        shared: the second name of a tied parameter -> its first.
    """
    place = folder / "global_step2"
    place.mkdir(parents=True)
    states = {
        "module": OrderedDict(tensors),
        "buffer_names": [],
        "param_shapes": [OrderedDict((n, t.shape) for n, t in tensors.items())],
        "shared_params": dict(shared or {}),
        "dp_world_size": 2,
        "ds_version": "0.19.8",
    }
    torch.save(states, place / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step2")
    return folder


def make_universal(run: Path, tensors: Mapping[str, Tensor], *, flat: bool) -> Path:
    """Make of ``global_step2`` in a run's directory what ds_to_universal.py 0.19.8 makes of it.

    Args:
        run: as ``write_zero2`` or ``write_zero3`` made it.
        tensors: the trained weights.
        flat: whether a parameter's file is its numbers and padding, as of ZeRO-3; else a mapping
            with the tensor as ``param``.
    """
    place = (run / "global_step2").rename(run / "global_step2_universal")
    for optimizer in place.glob("*optim_states.pt"):
        optimizer.unlink()
    for name, tensor in tensors.items():
        folder = place / "zero" / name
        folder.mkdir(parents=True)
        padded = torch.cat([tensor.float().flatten(), torch.zeros(tensor.numel() % 2)])
        torch.save(padded if flat else {"param": tensor.float()}, folder / "fp32.pt")
        torch.save(torch.ones_like(padded), folder / "exp_avg.pt")
    (run / "latest").unlink()
    (run / "latest_universal").write_text(place.name)
    return place


def _part(tensor: Tensor, rank: int, processes: int) -> Tensor:
    """A process's part of a tensor: ceil(numel / processes) numbers, zeros behind the last."""
    length = math.ceil(tensor.numel() / processes)
    flat = torch.zeros(length * processes)
    flat[: tensor.numel()] = tensor.flatten()
    return flat[rank * length : (rank + 1) * length].clone()
