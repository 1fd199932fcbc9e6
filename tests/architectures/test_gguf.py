"""GGUF files are read as the numbers that transformers makes of them, or refused with a way out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.gguf_writers import tiny_model, write_gguf

from mergeops.architectures import converted_gguf
from mergeops.errors import SourceError

BLOCKS = gguf.GGMLQuantizationType
FAMILIES = {
    "Llama": BLOCKS.Q4_0,
    "Qwen2": BLOCKS.Q8_0,
    "Qwen3": BLOCKS.Q5_1,
    "Qwen3Moe": BLOCKS.Q4_1,
    "Gemma2": BLOCKS.Q5_0,
    "Phi3": BLOCKS.Q8_0,
    "GPT2": BLOCKS.BF16,
    "Lfm2": BLOCKS.Q8_0,
}


def of_transformers(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What transformers itself loads of a file."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    has_config = (file.parent / "config.json").is_file()
    own = {"config": AutoConfig.from_pretrained(file.parent)} if has_config else {}
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        **own,
    )
    tied = model.all_tied_weights_keys
    return {name: value for name, value in model.state_dict().items() if name not in tied}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(family)
    settings = {}
    if family == "GPT2":
        # transformers reads no length of the context of GPT-2's files.
        model.config.save_pretrained(tmp_path)
    elif family == "Phi3":
        # The usual id of its padding is beyond a tiny vocabulary.
        model.config.save_pretrained(tmp_path)
    elif family == "Gemma2":
        settings = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        model.config.save_pretrained(tmp_path)
    file = write_gguf(model, tmp_path / "tiny.gguf", kind=FAMILIES[family], settings=settings)
    made = converted_gguf(file, tmp_path / "cache")
    ours, theirs = load_file(made / "model.safetensors"), of_transformers(file, torch.bfloat16)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    loaded, told = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not told["missing_keys"]
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "Lfm2"])
def test_a_file_without_blocks_gives_the_model_that_was_written(
    family: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(family).eval()
    file = write_gguf(model, tmp_path / "tiny.gguf", kind=BLOCKS.F32)
    loaded = AutoModelForCausalLM.from_pretrained(converted_gguf(file, tmp_path / "cache")).eval()
    ids = torch.tensor([[1, 5, 9, 33, 21, 60, 7]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-6)
    assert loaded.dtype == torch.float32


def test_a_conversion_is_kept_until_the_file_or_its_config_changes(tmp_path: Path) -> None:
    file = write_gguf(tiny_model("Qwen2"), tmp_path / "tiny.gguf")
    first = converted_gguf(file, tmp_path / "cache")
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert converted_gguf(file, tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    shutil.copy(first / "config.json", tmp_path / "config.json")
    assert converted_gguf(file, tmp_path / "cache") != first


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}),
        ({"attention.scale": 0.5}, {}),
        ({"logit_scale": 16.0}, {}),
    ],
)
def test_settings_that_transformers_passes_over_are_refused(
    settings: dict[str, Any], more: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = write_gguf(tiny_model("Llama"), tmp_path / "tiny.gguf", settings=settings, more=more)
    with pytest.raises(SourceError, match=rf"llama\.{next(iter(settings))}.*put the config.json"):
        converted_gguf(file, tmp_path / "cache")


def test_rotations_that_are_scaled_need_the_config_that_says_how(tmp_path: Path) -> None:
    model = tiny_model("Llama")
    rotations = {"rope_freqs.weight": np.ones(8, np.float32)}
    file = write_gguf(model, tmp_path / "tiny.gguf", more=rotations)
    with pytest.raises(
        SourceError, match=r"no place for 1 of its tensors, e.g. rope_freqs.*put its config.json"
    ):
        converted_gguf(file, tmp_path / "cache")
    scaled = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    model.config.rope_parameters = scaled
    model.config.save_pretrained(tmp_path)
    made = converted_gguf(file, tmp_path / "cache")
    assert json.loads((made / "config.json").read_text())["rope_parameters"]["factor"] == 8.0


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "rwkv7")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"rwkv7.*take the 16-bit model"):
        converted_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")


@pytest.mark.parametrize(
    ("cut", "said"), [(10, "cannot be read as a GGUF file"), (-2000, "cannot")]
)
def test_a_file_that_was_cut_is_refused(cut: int, said: str, tmp_path: Path) -> None:
    file = write_gguf(tiny_model("Qwen2"), tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(SourceError, match=said):
        converted_gguf(file, tmp_path / "cache")


def test_one_piece_of_several_and_an_adapter_are_no_model(tmp_path: Path) -> None:
    piece = write_gguf(tiny_model("Qwen2"), tmp_path / "tiny-00001-of-00003.gguf")
    with pytest.raises(SourceError, match=r"one of 00003 pieces.*llama-gguf-split --merge"):
        converted_gguf(piece, tmp_path / "cache")
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("x", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="a LoRA adapter; name the directory that PEFT saved"):
        converted_gguf(tmp_path / "lora.gguf", tmp_path / "cache")


def test_the_page_of_formats_says_which_families_are_tried() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    [told] = re.findall(r"Tried against\ntransformers: (.+)\.", page)
    assert re.findall(r"`(\w+)`", told) == sorted(FAMILIES)
