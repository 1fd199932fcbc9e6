"""What DeepSpeed's ds_to_universal.py makes of a checkpoint, by its layout's rules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.leftovers import problem
from support.zero_files import make_universal, write_zero2, write_zero3

from mergeops.checkpoint import read_range
from mergeops.recover import ShardedReader, leftover


def test_a_universal_checkpoint_is_read_where_each_parameter_has_its_file(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2, dtype=torch.bfloat16), "frozen": torch.ones(1)})
    place = make_universal(
        run, {"a": torch.full((2, 2), 3.0), "b.weight": torch.ones(3)}, flat=False
    )
    found = leftover(run)
    assert found is not None and found.shards is not None
    assert found.step == 2
    assert {n: t.dtype for n, t in found.shards.tensors.items()} == {
        "a": "F32",
        "b.weight": "F32",
        "frozen": "F32",
    }
    with ShardedReader(found.shards) as reader:
        assert read_range(reader, "a", 0, 4).tolist() == [3.0] * 4
    (place / "zero" / "a" / "fp32.pt").unlink()
    assert "zero/a/fp32.pt is missing: the conversion to a universal checkpoint" in problem(run)
    (run / "latest_universal").write_text("global_step4_universal")
    assert "latest_universal names 'global_step4_universal'" in problem(run)


def test_a_universal_checkpoint_of_zero3_has_its_shapes_in_the_files_of_processes(
    tmp_path: Path, read_all: Callable[[Path], dict[str, Any]]
) -> None:
    tensors = {"a": torch.rand(3, 5), "b": torch.rand(4), "frozen": torch.rand(3, 3)}
    run = write_zero3(tmp_path, tensors, 2, frozen="frozen")
    trained = {name: tensors[name] for name in ("a", "b")}
    place = make_universal(run, trained, flat=True)
    found = read_all(run)
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) for name, tensor in tensors.items())

    torch.save(torch.ones(14), place / "zero" / "a" / "fp32.pt")
    assert "of tensor a only 14 of 15 elements are there" in problem(run)
    shutil.rmtree(place / "zero" / "a")
    assert "zero/a/fp32.pt is missing: the conversion to a universal checkpoint" in problem(run)
    (place / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()
    assert "zero_pp_rank_0_mp_rank_00_model_states.pt is missing" in problem(run)


def test_a_tied_head_of_a_universal_checkpoint_is_its_embedding(
    tmp_path: Path, read_all: Callable[[Path], dict[str, Any]]
) -> None:
    trained = torch.rand(4, 2)
    half = trained.bfloat16()
    run = write_zero2(tmp_path, {"embed": half, "head": half}, shared={"head": "embed"})
    # DeepSpeed 0.19.8 writes the 16-bit model's copy for what has no optimizer states of its own.
    make_universal(run, {"embed": trained, "head": half.float()}, flat=False)
    found = read_all(run)
    assert found["embed"].equal(trained)
    assert found["head"].equal(trained)
