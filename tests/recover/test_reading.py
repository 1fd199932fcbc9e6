"""A sharded save is read as the library itself consolidates it, bit by bit."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.zero_files import write_zero2, write_zero3

from mergeops.checkpoint import read_range
from mergeops.recover import ShardedReader, leftover

ReadAll = Callable[[Path], dict[str, Any]]


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and found[name].equal(tensor)
        for name, tensor in expected.items()
    )


def consolidated(folder: Path, tmp_path: Path) -> Any:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(folder, tmp_path / "all.pt")
    return torch.load(tmp_path / "all.pt", weights_only=True)


def test_fsdp_is_read_as_torch_consolidates_it(
    written: Path, read_all: ReadAll, trained_base: Path, tmp_path: Path
) -> None:
    folder = written / "fsdp" / "checkpoint-4"
    found = read_all(folder)
    assert same(found, consolidated(folder / "pytorch_model_fsdp_0", tmp_path)["model"])
    assert same(found, load_file(trained_base / "model.safetensors"))


def test_of_a_folder_with_the_optimizer_only_the_model_is_read(
    written: Path, read_all: ReadAll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written / "together" / "checkpoint-8"
    expected = consolidated(folder, tmp_path)["model"]
    sizes = []
    preadv = os.preadv

    def counted(file: int, buffers: Any, position: int) -> int:
        sizes.append(preadv(file, buffers, position))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", counted)
    assert same(read_all(folder), expected)
    assert sum(sizes) == sum(tensor.nbytes for tensor in expected.values())


def test_tensors_cut_along_any_axis_are_whole(
    written: Path, read_all: ReadAll, tmp_path: Path
) -> None:
    found = read_all(written / "columns")
    assert same(found, consolidated(written / "columns", tmp_path))
    assert found["cube"].equal(torch.arange(60.0).view(3, 5, 4))
    assert found["turned"].equal(torch.arange(12.0).view(3, 4).t())
    assert found["scalar"].item() == 2.5


@pytest.mark.parametrize("folder", ["columns", "slices", "fsdp/checkpoint-4"])
def test_any_range_of_a_tensor_is_that_range(written: Path, read_all: ReadAll, folder: str) -> None:
    whole = read_all(written / folder)
    draw = random.Random(0)
    shards = leftover(written / folder).shards  # type: ignore[union-attr]
    assert shards is not None
    with ShardedReader(shards) as reader:
        for name, tensor in whole.items():
            for _ in range(8):
                start, stop = sorted(draw.sample(range(tensor.numel() + 1), 2))
                assert read_range(reader, name, start, stop).equal(tensor.reshape(-1)[start:stop])
                reader.prefetch(name, start, stop)


def test_slices_are_put_together_as_transformers_does(
    written: Path, read_all: ReadAll, tmp_path: Path
) -> None:
    from transformers.distributed import consolidate_distributed_checkpoint

    consolidate_distributed_checkpoint(written / "slices", tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    assert same(read_all(written / "slices"), load_file(file))


def test_files_of_each_process_are_put_together(written: Path, read_all: ReadAll) -> None:
    trained = torch.load(written / "trained.pt", weights_only=True)
    assert same(read_all(written / "verl" / "global_step_4"), trained)
    assert same(read_all(written / "ranks" / "checkpoint-4"), trained)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("groups", [1, 3])
def test_zero3_partitions_are_put_together(
    trained_base: Path, read_all: ReadAll, tmp_path: Path, processes: int, groups: int
) -> None:
    tensors = load_file(trained_base / "model.safetensors")
    run = write_zero3(
        tmp_path, tensors, processes, frozen="model.embed_tokens.weight", groups=groups
    )
    assert same(read_all(run), tensors)
    assert same(read_all(run / "global_step2"), tensors)


def test_the_16_bit_model_of_zero2_is_read(
    trained_base: Path, read_all: ReadAll, tmp_path: Path
) -> None:
    tensors = {
        name: tensor.bfloat16()
        for name, tensor in load_file(trained_base / "model.safetensors").items()
    }
    assert same(read_all(write_zero2(tmp_path, tensors)), tensors)


def test_what_is_found_says_kind_step_and_processes(written: Path, tmp_path: Path) -> None:
    run = write_zero3(tmp_path / "zero", {"w": torch.ones(3, 3)}, 2)
    expected = {
        written / "fsdp" / "checkpoint-4": ("dcp", 4, 2),
        written / "together" / "checkpoint-8": ("dcp", 8, 2),
        written / "slices": ("slices", None, 2),
        written / "verl" / "global_step_4": ("processes", 4, 2),
        run: ("zero", 2, 2),
    }
    for directory, facts in expected.items():
        found = leftover(directory)
        assert found is not None
        assert (found.kind, found.step, found.world_size) == facts
        assert not found.is_adapter
    adapter = leftover(written / "lora" / "checkpoint-4")
    assert adapter is not None
    assert adapter.is_adapter


def test_a_whole_checkpoint_is_nothing_left_over(trained_base: Path, tmp_path: Path) -> None:
    assert leftover(trained_base) is None
    assert leftover(tmp_path) is None
    assert leftover(tmp_path / "nowhere") is None


def test_a_changed_file_is_not_read_on(copied: Callable[[str], Path]) -> None:
    from mergeops.errors import SourceError

    folder = copied("slices")
    shards = leftover(folder).shards  # type: ignore[union-attr]
    assert shards is not None
    [first, _] = sorted(folder.glob("shard-*"))
    shutil.copyfile(first, first.with_name("other"))
    first.with_name("other").replace(first)
    with pytest.raises(SourceError, match="changed after it was looked at"):
        ShardedReader(shards)
