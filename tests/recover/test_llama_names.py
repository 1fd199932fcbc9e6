"""torchtitan's and torchtune's Llama is the base's Llama, bit by bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor

from mergeops.checkpoint import read_range
from mergeops.errors import SourceError
from mergeops.recover import ShardedReader, open_on_base, recover

TITAN = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def reverse_permuted(weight: Tensor, heads: int) -> Tensor:
    """torchtitan's ``_reverse_permute``: from Hugging Face's order of rows to its own."""
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def titans(base: Path) -> dict[str, Tensor]:
    """The base's weights as torchtitan names and orders them."""
    config = json.loads((base / "config.json").read_text())
    heads = {"self_attn.q_proj": config["num_attention_heads"]}
    heads["self_attn.k_proj"] = config["num_key_value_heads"]
    found = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.startswith("model.layers."):
            layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if module in heads:
                tensor = reverse_permuted(tensor, heads[module])
            found[f"layers.{layer}.{TITAN[module]}.weight"] = tensor
        else:
            whole = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm"}
            module = name.removesuffix(".weight")
            found[f"{whole.get(module, 'output')}.weight"] = tensor
    return found


def check_is_base(folder: Path, base: Path) -> None:
    model = open_on_base(folder, base)
    with ShardedReader(model) as reader:
        for name, tensor in load_file(base / "model.safetensors").items():
            found = read_range(reader, name, 0, tensor.numel()).view(tensor.shape)
            assert found.equal(tensor), name
            # And any part of it, as merges read it.
            half = read_range(reader, name, tensor.numel() // 3, tensor.numel() // 2)
            assert half.equal(tensor.flatten()[tensor.numel() // 3 : tensor.numel() // 2]), name


def test_torchtitans_step_is_its_base(trained_base: Path, tmp_path: Path) -> None:
    dcp.save(titans(trained_base), checkpoint_id=tmp_path / "step-10", no_dist=True)
    check_is_base(tmp_path / "step-10", trained_base)
    result = recover(tmp_path / "step-10", tmp_path / "out", base=trained_base)
    assert result.found.step == 10
    made, whole = (load_file(p / "model.safetensors") for p in (tmp_path / "out", trained_base))
    assert all(made[name].equal(tensor) for name, tensor in whole.items())


def test_torchtitans_new_names_are_known(trained_base: Path, tmp_path: Path) -> None:
    new = {
        name.replace(".attention.w", ".attention.qkv_linear.w")
        .replace("qkv_linear.wo", "wo")
        .replace("output.weight", "lm_head.weight"): tensor
        for name, tensor in titans(trained_base).items()
    }
    dcp.save(new, checkpoint_id=tmp_path / "step-10", no_dist=True)
    check_is_base(tmp_path / "step-10", trained_base)


def test_torchtunes_epoch_is_its_base(trained_base: Path, tmp_path: Path) -> None:
    names = {
        "attention.wq": "attn.q_proj",
        "attention.wk": "attn.k_proj",
        "attention.wv": "attn.v_proj",
        "attention.wo": "attn.output_proj",
        "feed_forward": "mlp",
        "attention_norm.weight": "sa_norm.scale",
        "ffn_norm.weight": "mlp_norm.scale",
    }
    tunes = {}
    for name, tensor in titans(trained_base).items():
        for old, new in names.items():
            name = name.replace(old, new)
        tunes["norm.scale" if name == "norm.weight" else name] = tensor
    real = real_torchtune()
    if real is not None:
        config = json.loads((trained_base / "config.json").read_text())
        heads = config["num_attention_heads"], config["num_key_value_heads"]
        weights = load_file(trained_base / "model.safetensors")
        theirs = real.hf_to_tune(weights, *heads, dim=config["hidden_size"])
        assert theirs.keys() == tunes.keys()
        assert all(tunes[name].equal(tensor) for name, tensor in theirs.items())
    folder = tmp_path / "dist_epoch_0"
    dcp.save({"model": tunes, "epochs_run": 1}, checkpoint_id=folder, no_dist=True)
    check_is_base(folder, trained_base)


def real_torchtune() -> Any:
    """torchtune's own conversion, where it is installed; its package needs others that are not."""
    spec = importlib.util.find_spec("torchtune")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "models" / "convert_weights.py"
    inner = importlib.util.spec_from_file_location("convert_weights", file)
    assert inner is not None and inner.loader is not None
    module = importlib.util.module_from_spec(inner)
    inner.loader.exec_module(module)
    return module


def test_rows_that_are_cut_within_a_head_find_their_place(
    trained_base: Path, tmp_path: Path
) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import (
        SavePlan,
        TensorWriteData,
        WriteItem,
        WriteItemType,
    )

    tensors = titans(trained_base)
    cuts = {name: (0, 3, 11, 12, len(tensor)) for name, tensor in tensors.items()}

    class Cut(DefaultSavePlanner):
        """Each tensor in four pieces, whose borders lie within heads."""

        def create_local_plan(self) -> SavePlan:
            items = []
            for name, tensor in self.state_dict.items():
                for i, (a, b) in enumerate(zip(cuts[name], cuts[name][1:], strict=False)):
                    offset = torch.Size([a, *[0] * (tensor.dim() - 1)])
                    chunk = ChunkStorageMetadata(offset, torch.Size([b - a, *tensor.shape[1:]]))
                    data = TensorWriteData(
                        chunk, TensorProperties.create_from_tensor(tensor), tensor.size()
                    )
                    index = MetadataIndex(name, offset, i)
                    items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
            self.plan = SavePlan(items, planner_data={})
            return self.plan

        def resolve_data(self, write_item: WriteItem) -> Tensor:
            tensor = self.state_dict[write_item.index.fqn]
            begin = write_item.index.offset[0]
            return tensor[begin : begin + write_item.tensor_data.chunk.sizes[0]].clone()

    dcp.save(
        tensors,
        storage_writer=FileSystemWriter(tmp_path / "step-3"),
        planner=Cut(dedup_save_to_lowest_rank=False),
        no_dist=True,
    )
    check_is_base(tmp_path / "step-3", trained_base)


def test_another_family_keeps_the_way_to_its_converter(trained_base: Path, tmp_path: Path) -> None:
    dcp.save(titans(trained_base), checkpoint_id=tmp_path / "step-10", no_dist=True)
    other = Path(shutil.copytree(trained_base, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text()) | {"model_type": "qwen3"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"torchtitan converts them by\s+scripts/checkpoint_conv"):
        open_on_base(tmp_path / "step-10", other)
