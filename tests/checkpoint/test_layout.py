"""Finding the weights of a directory, and reading ranges of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.checkpoint import open_checkpoint
from mergeops.checkpoint.header import encode_header, read_header
from mergeops.checkpoint.layout import read_json, read_small, weight_files
from mergeops.checkpoint.reader import CheckpointReader, read_range, read_tensor
from mergeops.errors import SourceError


def test_sharded_and_single_checkpoints_have_the_same_tensors(
    tiny_llama: Callable[..., Path],
) -> None:
    single = tiny_llama(seed=5)
    sharded = tiny_llama(seed=5, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = open_checkpoint(single), open_checkpoint(sharded)
    assert one.tensors.keys() == many.tensors.keys()
    with CheckpointReader(one) as a, CheckpointReader(many) as b:
        for name in one.tensors:
            assert read_tensor(a, name).equal(read_tensor(b, name))


def test_ranges_are_read_as_the_library_reads_them(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(dtype="bfloat16")
    expected = load_file(folder / "model.safetensors")
    with CheckpointReader.open(folder) as reader:
        for name, tensor in expected.items():
            stop = min(tensor.numel(), 40)
            found = read_range(reader, name, 7, stop)
            assert found.dtype == torch.bfloat16
            assert found.equal(tensor.view(-1)[7:stop])


def test_encoded_header_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = {"b": ("F32", (2, 2)), "é": ("BF16", (3,))}
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_header(tensors) + b"\0" * 22)
    assert len(encode_header(tensors)) % 8 == 0
    assert {n: t.shape for n, t in load_file(path).items()} == {"b": (2, 2), "é": (3,)}
    assert [t.name for t in read_header(path).values()] == ["b", "é"]


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"has pytorch_model.bin, .*save_pretrained\(NEW_DIR\)"):
        open_checkpoint(tmp_path)


def test_adapter_directory_is_not_a_full_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="holds a LoRA adapter, no full model"):
        open_checkpoint(tmp_path)


def test_directory_without_weights_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has neither model.safetensors nor model.safetensors.i"):
        open_checkpoint(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SourceError, match="it has other.safetensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceError, match="nowhere is not a directory"):
        open_checkpoint(tmp_path / "nowhere")


def test_file_of_another_size_or_time_is_not_opened(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    save_file({"w": torch.zeros(5)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="model.safetensors changed after the merge was planned"):
        CheckpointReader(checkpoint)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="model.safetensors: No such file"):
        CheckpointReader(checkpoint)
    with pytest.raises(SourceError, match="has other weight files than when"):
        save_file({"w": torch.zeros(4)}, tmp_path / "model.safetensors")
        CheckpointReader(open_checkpoint(tmp_path), {})


def test_config_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    from mergeops.checkpoint.layout import read_json

    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(SourceError, match="config.json is no JSON object"):
        read_json(tmp_path / "config.json")
    with pytest.raises(SourceError, match="nothing.json cannot be read: No such file"):
        read_json(tmp_path / "nothing.json")


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    """As in a half-copied Hugging Face cache."""
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    with pytest.raises(
        SourceError, match=r"safetensors is a link to \.\./blobs/gone, which is not"
    ):
        weight_files(tmp_path)


def test_a_file_that_is_deleted_while_it_is_read_is_said_to_be(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama(), tmp_path / "copy")
    with CheckpointReader.open(copy) as reader:
        (copy / "model.safetensors").unlink()
        with pytest.raises(SourceError, match="was deleted after the merge was planned; put it"):
            reader.check_unchanged()


@pytest.mark.parametrize("text", ["[" * 70 + "]" * 70, "[" * 5000, '{"a":' * 70 + "1" + "}" * 70])
def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text('{"x": ' + text + "}")
    with pytest.raises(SourceError, match=r"config.json is (nested more than 64 levels|not JSON)"):
        read_json(tmp_path / "config.json")


def test_json_of_64_levels_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"x": ' + "[" * 63 + "]" * 63 + "}")
    assert list(read_json(tmp_path / "config.json")) == ["x"]


def test_a_pipe_and_a_file_of_a_gigabyte_are_no_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is no regular file"):
        read_json(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(SourceError, match=r"large has 1073741824 bytes; allowed are 268435456"):
        read_json(tmp_path / "large")


def test_a_small_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(SourceError, match=r"tokenizer.json cannot be read: Is a directory"):
        read_small(tmp_path / "tokenizer.json")
