"""What is not whole, or not what it seems, is refused by name, with a way out."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.leftovers import problem
from support.sweeps import seeds
from support.zero_files import write_zero2, write_zero3

from mergeops.checkpoint import read_range
from mergeops.errors import SourceError
from mergeops.recover import ShardedReader, leftover

Copied = Callable[[str], Path]
INNER = "pytorch_model_fsdp_0"


def test_a_save_without_its_metadata_did_not_finish(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4")
    (folder / INNER / ".metadata").unlink()
    assert "has no .metadata, which is written last: the save did not finish" in problem(folder)


def test_a_payload_that_is_too_short(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4")
    file = folder / INNER / "__1_0.distcp"
    os.truncate(file, file.stat().st_size - 1)
    assert "__1_0.distcp has" in problem(folder)
    assert "or the file was cut; use an earlier checkpoint" in problem(folder)


def test_the_file_of_a_process_is_missing(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4")
    (folder / INNER / "__0_0.distcp").unlink()
    assert "__0_0.distcp is missing, in which a part of tensor" in problem(folder)
    folder = copied("verl/global_step_4")
    (folder / "actor" / "model_world_size_2_rank_1.pt").unlink()
    assert "model_world_size_2_rank_1.pt is missing" in problem(folder)
    folder = copied("slices")
    [first, _] = sorted(folder.glob("shard-*"))
    first.unlink()
    assert "the files shard-00001-model-*.safetensors are missing" in problem(folder)


@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_process_of_zero3_is_missing(tmp_path: Path, kind: str) -> None:
    run = write_zero3(tmp_path, {"w": torch.ones(3, 3)}, 3)
    [file] = (run / "global_step2").glob(f"*zero_pp_rank_1_mp_rank_00_{kind}_states.pt")
    file.unlink()
    assert f"zero_pp_rank_1_mp_rank_00_{kind}_states.pt is missing, and with it" in problem(run)


def test_the_last_node_of_zero3_is_missing(tmp_path: Path) -> None:
    run = write_zero3(tmp_path, {"w": torch.ones(3, 3)}, 3)
    for file in (run / "global_step2").glob("*rank_2_mp*"):
        file.unlink()
    assert "is of 3 processes, but the files of 2 are there" in problem(run)


def test_zero2_without_its_model(tmp_path: Path) -> None:
    run = write_zero3(tmp_path, {"w": torch.ones(2)}, 1)
    for file in (run / "global_step2").glob("*optim*"):
        file.unlink()
    assert "has neither mp_rank_00_model_states.pt nor optim_states.pt files" in problem(run)


def test_placeholders_of_weights_that_were_not_gathered(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2), "w": torch.empty(0)})
    assert "holds w without elements, a placeholder" in problem(run)


def test_tensor_parallelism_has_another_way(tmp_path: Path) -> None:
    place = write_zero2(tmp_path, {"a": torch.ones(2)}) / "global_step2"
    for name in ("layer_0_expert_3_mp_rank_01_model_states.pt", "mp_rank_01_model_states.pt"):
        (place / name).touch()
        assert f"has {name}: tensor or pipeline parallelism is not read" in problem(place)
        assert "ds_to_universal.py" in problem(place)
        (place / name).unlink()


def test_an_expert_or_the_rest_of_the_model_is_missing(tmp_path: Path) -> None:
    place = write_zero2(tmp_path, {"a": torch.ones(2)}) / "global_step2"
    name = "layer_{}_expert_{}_mp_rank_00_model_states.pt"
    for layer in (0, 1):
        for expert in range(3):
            tensors = {f"l.{layer}.experts.{expert}.weight": torch.ones(2) * expert}
            torch.save(tensors, place / name.format(layer, expert))
    found = leftover(place)
    assert found is not None and found.shards is not None
    assert len(found.shards.tensors) == 7
    (place / name.format(1, 2)).unlink()
    assert f"{name.format(1, 2)} is missing, and with it an expert" in problem(place)
    (place / "mp_rank_00_model_states.pt").unlink()
    assert "has files of experts, but no mp_rank_00_model_states.pt" in problem(place)


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2)})
    (run / "global_step2" / "mp_rank_00_model_states.pt").unlink()
    os.mkfifo(run / "global_step2" / "mp_rank_00_model_states.pt")
    assert "is not there, or no regular file" in problem(run)


def test_latest_names_what_is_not_there(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2)})
    (run / "latest").write_text("global_step8")
    assert "latest names 'global_step8', but there is only global_step2" in problem(run)
    (run / "latest").unlink()
    assert f"may not have finished; if it did, name {run}/global_step2 itself" in problem(run)


def test_a_step_newer_than_latest_did_not_finish(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2)})
    shutil.copytree(run / "global_step2", run / "global_step4")
    assert f"so the save did not finish; use {run}/global_step2" in problem(run / "global_step4")
    assert leftover(run).step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("marker", ["checkpoint-is-incomplete.txt", ".incomplete"])
def test_a_marker_says_that_the_save_did_not_finish(copied: Copied, marker: str) -> None:
    folder = copied("slices")
    (folder / marker).touch()
    assert f"has {marker}, by which the trainer marks a save that did not finish" in problem(folder)


def test_a_tracker_or_a_mark_of_others_says_that_the_save_did_not_finish(copied: Copied) -> None:
    folder = copied("verl/global_step_4")
    tracker = folder.with_name("latest_checkpointed_iteration.txt")
    tracker.write_text("2")
    assert f"is newer than step 2, which {tracker} names" in problem(folder)
    tracker.write_text("4")
    assert leftover(folder).problem is None  # type: ignore[union-attr]
    tracker.write_text("2")
    assert "is newer than step 2, which" in problem(folder / "actor")
    tracker.unlink()
    folder = copied("together/checkpoint-8")
    folder.with_name("checkpoint-4").mkdir()
    (folder.with_name("checkpoint-4") / "CHECKPOINT_COMPLETE").touch()
    assert "has no CHECKPOINT_COMPLETE, which" in problem(folder)
    (folder / "CHECKPOINT_COMPLETE").touch()
    assert leftover(folder).problem is None  # type: ignore[union-attr]


@pytest.mark.parametrize("inner", ["", "actor"])
def test_verls_list_of_contents_is_written_last(copied: Copied, inner: str) -> None:
    folder = copied("verl/global_step_4")
    other = folder.with_name("global_step_2")
    (other / inner).mkdir(parents=True)
    (other / inner / "ckpt_contents.json").touch()
    said = problem(folder)
    assert "ckpt_contents.json, which" in said and said.endswith(f"did not finish; use {other}")
    (folder / inner / "ckpt_contents.json").touch()
    assert leftover(folder).problem is None  # type: ignore[union-attr]


def test_a_temporary_name_says_that_the_save_did_not_finish(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4")
    renamed = folder.rename(folder.with_name("tmp-checkpoint-4"))
    assert "has the name that a Trainer gives to a save until it is finished" in problem(renamed)


def test_megatron_has_another_way(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4") / INNER
    (folder / "common.pt").touch()
    assert "has Megatron's names and fused tensors; average it with others" in problem(folder)


def test_files_of_two_saves_are_told_apart(copied: Copied) -> None:
    folder = copied("verl/global_step_4") / "actor"
    shutil.copyfile(
        folder / "model_world_size_2_rank_0.pt", folder / "model_world_size_2_rank_1.pt"
    )
    assert "the files are of several saves" in problem(folder)
    (folder / "model_world_size_4_rank_0.pt").touch()
    assert "holds files of runs of 2, 4 processes" in problem(folder)


def test_plain_tensors_of_processes_are_copies_or_refused(tmp_path: Path) -> None:
    for rank in range(2):
        states = {"copy": torch.ones(3), "part": torch.full((3,), float(rank))}
        torch.save(states, tmp_path / f"pytorch_model_fsdp_rank{rank}.bin")
    assert "tensor part differs between the processes" in problem(tmp_path)
    for rank in range(2):
        torch.save({"copy": torch.ones(3)}, tmp_path / f"pytorch_model_fsdp_rank{rank}.bin")
    assert leftover(tmp_path).problem is None  # type: ignore[union-attr]


def test_the_last_process_of_a_mesh_is_missing(copied: Copied) -> None:
    folder = copied("ranks/checkpoint-4")
    (folder / "pytorch_model_fsdp_0_rank1.bin").unlink()
    assert "the files of 1 processes, of 2" in problem(folder)


class Evil:
    """Runs a command when it is unpickled freely."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def test_no_class_but_those_of_the_format_is_unpickled(copied: Copied, tmp_path: Path) -> None:
    folder = copied("fsdp/checkpoint-4")
    mark = tmp_path / "executed"
    (folder / INNER / ".metadata").write_bytes(pickle.dumps(Evil(mark)))
    assert "names posix.system, which is no part of such a checkpoint" in problem(folder)
    run = write_zero2(tmp_path / "zero", {"a": torch.ones(2)})
    torch.save({"module": Evil(mark)}, run / "global_step2" / "mp_rank_00_model_states.pt")
    assert "names posix.system" in problem(run)
    assert not mark.exists()


def test_a_pickle_that_ends_within_a_number(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4")
    # BININT2: two bytes follow, and one is there.
    (folder / INNER / ".metadata").write_bytes(b"\x80\x02M\x01")
    assert "is no whole pickle of a checkpoint (unpack requires a buffer of 2" in problem(folder)


def test_a_metadata_that_points_outside(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4") / INNER
    content = (folder / ".metadata").read_bytes()
    for outside in (b"/../0.distcp", b"//etc/passwd"):
        (folder / ".metadata").write_bytes(content.replace(b"__0_0.distcp", outside))
        assert "only a file below the directory is allowed" in problem(folder)


def test_a_payload_of_another_save_is_refused_when_it_is_read(copied: Copied) -> None:
    folder = copied("fsdp/checkpoint-4") / INNER
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    at = content.index(b"FloatStorage")
    content[at : at + 12] = b"LongStorage\n"
    (folder / "__0_0.distcp").write_bytes(content)
    shards = leftover(folder).shards  # type: ignore[union-attr]
    assert shards is not None
    with ShardedReader(shards) as reader, pytest.raises(SourceError, match="__0_0.distcp"):
        for name, tensor in shards.tensors.items():
            read_range(reader, name, 0, tensor.numel)


def test_files_of_old_torch_and_no_files_of_torch(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2)})
    file = run / "global_step2" / "mp_rank_00_model_states.pt"
    torch.save({"module": {}}, file, _use_new_zipfile_serialization=False)
    assert "or torch before 1.6 wrote it" in problem(run)
    file.write_bytes(b"")
    assert "is cut" in problem(run)
    stream = io.BytesIO()
    torch.save([1, 2], stream)
    file.write_bytes(stream.getvalue())
    assert "is no whole checkpoint of DeepSpeed" in problem(run)


@pytest.mark.parametrize("seed", seeds(400, always=6))
def test_damaged_bytes_never_end_in_anything_but_a_message(
    copied: Copied, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    if seed % 2:
        write_zero3(tmp_path / "run", {"w": torch.ones(5, 3), "b": torch.ones(3)}, 2)
        folder = tmp_path / "run"
    else:
        folder = copied(["fsdp/checkpoint-4", "slices", "verl/global_step_4"][seed % 3])
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.stat().st_size]
    for _ in range(20):
        file = draw.choice(files)
        before = file.read_bytes()
        content = bytearray(before)
        small = min(len(content), 4000)
        for _ in range(draw.choice([1, 1, 4, 30])):
            content[draw.randrange(small)] = draw.randrange(256)
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        file.write_bytes(content)
        try:
            found = leftover(folder)
            if found is not None and found.shards is not None:
                with ShardedReader(found.shards) as reader:
                    for name, tensor in found.shards.tensors.items():
                        if tensor.numel < 10**6:
                            read_range(reader, name, 0, tensor.numel)
        except SourceError as error:
            assert "\n" not in str(error)
        file.write_bytes(before)


def test_a_pickle_that_would_be_hashed_or_printed_without_end_is_refused(tmp_path: Path) -> None:
    run = write_zero2(tmp_path, {"a": torch.ones(2)})
    file = run / "global_step2" / "mp_rank_00_model_states.pt"
    # A tuple of two of what is on the stack, sixty times over.
    nested = b")" + b"2\x86" * 60
    for data in (b"}" + nested + b"K\x01s.", b"ctorch\nSize\n" + nested + b"\x85R."):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("m/data.pkl", b"\x80\x02" + data)
        assert "it was cut or damaged" in problem(run)
