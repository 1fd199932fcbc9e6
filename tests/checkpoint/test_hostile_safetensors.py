"""Files that lie. Each must be refused with the file, the tensor and the value in one line."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mergeops.checkpoint import open_checkpoint
from mergeops.checkpoint.header import read_header
from mergeops.checkpoint.reader import CheckpointReader
from mergeops.errors import SourceError

GOOD = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def write(path: Path, header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "a": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in header.items()} == {
        "b": ("BF16", (2, 3)),
        "a": ("I64", ()),
        "empty": ("F32", (0, 4)),
    }


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    refused(write(tmp_path / "x", GOOD, length=5000), "truncated: its header claims 5000 bytes")


def test_header_of_absurd_length(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD, length=2**63)
    refused(path, "claims 9223372036854775808 bytes; at most 100000000 are allowed")


def test_file_of_a_few_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    refused(tmp_path / "x", "has 3 bytes, too few")


@pytest.mark.parametrize("text", [b"{not json", b"\xff\xfe{}", b"[" * 100_000])
def test_header_that_is_no_json(tmp_path: Path, text: bytes) -> None:
    refused(write(tmp_path / "x", text), "its header is not JSON")


def test_header_that_is_no_object(tmp_path: Path) -> None:
    refused(write(tmp_path / "x", b"[1, 2]"), "no JSON object")


def test_duplicate_names(tmp_path: Path) -> None:
    entry = json.dumps(GOOD["w"])
    refused(write(tmp_path / "x", f'{{"w": {entry}, "w": {entry}}}'.encode()), "names 'w' twice")


def test_offsets_outside_the_file(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 160]}}
    refused(write(tmp_path / "x", header), "tensor w is at bytes .* outside the file of")


def test_offsets_backwards(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}}
    refused(write(tmp_path / "x", header), "tensor w is at bytes")


@pytest.mark.parametrize("offsets", [[-4, 12], [0], [0.0, 16], "0-16", [True, 16]])
def test_offsets_that_are_no_positions(tmp_path: Path, offsets: Any) -> None:
    header = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": offsets}}
    refused(write(tmp_path / "x", header), "tensor w has data_offsets .* two byte positions")


def test_bytes_that_do_not_match_the_shape(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}}
    refused(write(tmp_path / "x", header), r"tensor w has 16 bytes; F32 \[2, 3\] takes 24")


def test_shape_whose_product_overflows_64_bits(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [2**33, 2**33, 4], "data_offsets": [0, 16]}}
    refused(write(tmp_path / "x", header), "tensor w has 16 bytes; F32")


@pytest.mark.parametrize("shape", [[-2, -2], "4", [2.0, 2], None])
def test_shape_that_is_none(tmp_path: Path, shape: Any) -> None:
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}
    refused(write(tmp_path / "x", header), "tensor w has shape .* list of sizes")


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F4", "C64", None, 3])
def test_dtype_that_cannot_be_merged(tmp_path: Path, dtype: Any) -> None:
    header = {"w": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, 16]}}
    refused(write(tmp_path / "x", header), f"tensor w has dtype {dtype!r}; allowed: F64, F32, F16")


def test_entry_without_fields(tmp_path: Path) -> None:
    refused(write(tmp_path / "x", {"w": {"dtype": "F32"}}), "tensor w has the entry")


def test_overlapping_tensors(tmp_path: Path) -> None:
    header = {
        "v": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    refused(write(tmp_path / "x", header), "tensor w overlaps the one before it")


def test_gap_between_tensors(tmp_path: Path) -> None:
    header = {
        "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    refused(write(tmp_path / "x", header), "tensor w follows a gap")


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD, b"\0" * 20)
    refused(path, r"has \d+ bytes, but its tensors end at byte \d+")


def test_truncated_data(tmp_path: Path) -> None:
    refused(write(tmp_path / "x", GOOD, b"\0" * 10), "truncated or its header lies")


def test_pipe_in_place_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    refused(tmp_path / "x", "not a regular file")


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "x", "cannot be read: No such file")


def index_of(folder: Path, weight_map: Any) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "target",
    ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 7, "x\0y/z"],
)
def test_index_cannot_leave_the_directory(tmp_path: Path, target: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path / "secret.safetensors", GOOD)
    with pytest.raises(SourceError, match="puts tensor w into .* only a file name inside"):
        open_checkpoint(index_of(folder, {"w": target}))


def test_index_names_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no safetensors file"):
        open_checkpoint(index_of(tmp_path, {"w": "training_args.bin"}))


@pytest.mark.parametrize("weight_map", [None, {}, ["w"]])
def test_index_without_a_map(tmp_path: Path, weight_map: Any) -> None:
    with pytest.raises(SourceError, match="has no weight_map"):
        open_checkpoint(index_of(tmp_path, weight_map))


def test_shard_that_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", GOOD)
    folder = index_of(tmp_path, {"w": "a.safetensors", "v": "b.safetensors"})
    with pytest.raises(SourceError, match="b.safetensors is missing, but .* names it"):
        open_checkpoint(folder)


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", GOOD)
    with pytest.raises(SourceError, match="puts tensor v into a.safetensors, but it is in none"):
        open_checkpoint(index_of(tmp_path, {"v": "a.safetensors"}))


def test_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    header = {
        "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    write(tmp_path / "a.safetensors", header)
    with pytest.raises(SourceError, match=r"does not list 1 tensor\(s\) of the files, e.g. v in a"):
        open_checkpoint(index_of(tmp_path, {"w": "a.safetensors"}))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", GOOD)
    write(tmp_path / "b.safetensors", GOOD)
    folder = index_of(tmp_path, {"w": "a.safetensors", "v": "b.safetensors"})
    with pytest.raises(SourceError, match="tensor w is in a.safetensors and b.safetensors"):
        open_checkpoint(folder)


def test_index_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(SourceError, match=r"index.json is not JSON"):
        open_checkpoint(tmp_path)


def test_checkpoint_without_tensors(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {}, b"")
    with pytest.raises(SourceError, match="holds no tensors"):
        open_checkpoint(tmp_path)


def test_file_cut_while_being_read(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", GOOD)
    with CheckpointReader.open(tmp_path) as reader:
        os.truncate(tmp_path / "model.safetensors", 80)
        with pytest.raises(SourceError, match="ends at byte 80, inside tensor w"):
            reader.read("w", 0, 4, np.empty(32, np.uint8))
        with pytest.raises(SourceError, match="changed after the merge was planned"):
            reader.check_unchanged()


def test_links_inside_a_hub_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "blobs" / "abc", GOOD)
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/abc")
    assert set(open_checkpoint(tmp_path / "snapshot").tensors) == {"w"}


def test_slices_under_the_names_of_the_whole_are_no_model(tmp_path: Path) -> None:
    written = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [2, 0]}}), "format": "pt"}
    first = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [0, 0]}}), "format": "pt"}
    name = "shard-00002-model-00001-of-00001.safetensors"
    save_file({"w": torch.zeros(2, 4)}, tmp_path / name, metadata=written)
    refused(tmp_path / name, f"holds slices .* `mergeops recover {tmp_path} OUT --base BASE`")
    with pytest.raises(SourceError, match=f"{tmp_path} holds slices of tensors, a file for each p"):
        open_checkpoint(tmp_path)
    # Under another name a slice is a slice, and so is the first one, which begins at zero.
    for metadata in (written, first):
        save_file({"w": torch.zeros(2, 4)}, tmp_path / "model.safetensors", metadata=metadata)
        with pytest.raises(SourceError, match="model.safetensors holds slices of tensors"):
            open_checkpoint(tmp_path)


def test_a_model_that_one_process_wrote_whole_is_one(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(str(tmp_path), fqn_to_index_mapping={"a": 1, "b": 2})
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    assert open_checkpoint(tmp_path).tensors["a"].shape == (2, 3)


@pytest.mark.parametrize(
    "said", ["{", "[]", '{"w": {}}', '{"w": {"saved_offsets": [0]}}', '{"w": {"saved_offsets": 3}}']
)
def test_damaged_places_of_slices(tmp_path: Path, said: str) -> None:
    header = {**GOOD, "__metadata__": {"DCP_SHARDING_INFO": said}}
    refused(write(tmp_path / "x", header), "the DCP_SHARDING_INFO of its header is damaged")
