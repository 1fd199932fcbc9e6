"""LoRA on convolutions; modules that may be two tensors, or are made of several."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mergeops.adapters import AdapterReader, base_names, open_adapter
from mergeops.architectures import ModelFit, read_fit
from mergeops.checkpoint import read_range
from mergeops.errors import SourceError


def adapted(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    opened = open_adapter(adapter, base)
    reader = AdapterReader(opened, "F32")
    found = {
        name: read_range(reader, name, 0, stored.numel).view(stored.shape)
        for name, stored in opened.tensors.items()
    }
    reader.close()
    return found


def hand_made(folder: Path, tensors: dict[str, torch.Tensor], **said: Any) -> Path:
    """An adapter of LoRA with these tensors."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], **said}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pictures(folder: Path) -> Path:
    """A model with a convolution of each kind: over patches, and one for each channel alone."""
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        num_channels=3,
        patch_size=4,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        num_stages=2,
        num_labels=3,
    )
    transformers.ConvNextForImageClassification(config).save_pretrained(folder)
    return folder


def test_lora_on_convolutions_gives_what_peft_merges(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = pictures(tmp_path / "base")
    load = transformers.ConvNextForImageClassification.from_pretrained
    targets = r".*(patch_embeddings|downsampling_layer\.1|pwconv1)"
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    get_peft_model(load(base), config).save_pretrained(tmp_path / "lora")
    merged = PeftModel.from_pretrained(load(base), str(tmp_path / "lora")).merge_and_unload()
    found, before = adapted(tmp_path / "lora", base), load_file(base / "model.safetensors")
    changed = {name for name in found if not found[name].equal(before[name])}
    assert {len(before[name].shape) for name in changed} == {2, 4}
    for name, tensor in load_file(_saved(merged, tmp_path / "merged")).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def test_convolutions_of_channels_in_groups_are_refused_by_that(tmp_path: Path) -> None:
    base = pictures(tmp_path / "base")
    name = "convnext.encoder.stages.0.layers.0.dwconv"
    tensors = {
        f"base_model.model.{name}.lora_A.weight": torch.ones(2, 8, 7, 7),
        f"base_model.model.{name}.lora_B.weight": torch.ones(8, 2, 1, 1),
    }
    lora = hand_made(tmp_path / "lora", tensors, target_modules=["dwconv"])
    with pytest.raises(SourceError, match="its channels are in groups.* leave this source out"):
        open_adapter(lora, base)


def test_a_module_that_may_be_two_tensors_is_refused_with_both(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    weights = {f"{side}.layers.0.q.weight": torch.ones(4, 4) for side in ("text", "vision")}
    save_file(weights, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "ours"}')
    module = "base_model.model.layers.0.q"
    tensors = {
        f"{module}.lora_A.weight": torch.ones(2, 4),
        f"{module}.lora_B.weight": torch.ones(4, 2),
    }
    lora = hand_made(tmp_path / "lora", tensors)
    with pytest.raises(
        SourceError,
        match=r"may be text.layers.0.q.weight or vision.layers.0.q.weight.*set the source's base",
    ):
        open_adapter(lora, base)


def mixtral(folder: Path, *, original: bool) -> Path:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(folder, save_original_format=original)
    return folder


def test_a_module_that_lies_in_several_tensors_has_a_way_out_that_works(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    trained = {f"base_model.model.{name}": torch.ones(2, 16, 24)}
    lora = hand_made(tmp_path / "lora", trained, modules_to_save=["experts"])
    one_by_one = mixtral(tmp_path / "base", original=True)
    with pytest.raises(SourceError, match=r"keeps in 2 tensors.*save_original_format=False"):
        open_adapter(lora, one_by_one)
    model = transformers.MixtralForCausalLM.from_pretrained(one_by_one)
    model.save_pretrained(tmp_path / "joined", save_original_format=False)
    found = adapted(lora, tmp_path / "joined")
    assert found[name].equal(trained[f"base_model.model.{name}"])


def test_experts_that_are_put_together_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(config: Any, shapes: Any) -> ModelFit | None:
        fit = read_fit(config, shapes)
        assert fit is not None
        return dataclasses.replace(fit, operations=dict.fromkeys(fit.operations, ("Transpose",)))

    monkeypatch.setattr(base_names, "read_fit", turned)
    module = "base_model.model.model.layers.0.mlp.experts"
    tensors = {
        f"{module}.lora_A.weight": torch.ones(4, 24),
        f"{module}.lora_B.weight": torch.ones(16, 4),
    }
    lora = hand_made(tmp_path / "lora", tensors, target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(SourceError, match=r"a way that mergeops cannot go back; save the base"):
        open_adapter(lora, mixtral(tmp_path / "base", original=True))
