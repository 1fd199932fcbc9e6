"""LoRA adapters against PEFT's own merge, and everything that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.adapters import AdapterReader, open_adapter
from mergeops.checkpoint import read_range
from mergeops.errors import SourceError
from mergeops.methods import kernels

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def adapted(adapter: Path, base: Path, compute: str = "F32") -> dict[str, Any]:
    opened = open_adapter(adapter, base)
    reader = AdapterReader(opened, compute)
    found = {}
    for name, stored in opened.tensors.items():
        found[name] = read_range(reader, name, 0, stored.numel).view(stored.shape)
    reader.close()
    return found


def merged_by_peft(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    return dict(model.merge_and_unload().state_dict())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"alpha_pattern": {"q_proj": 3, "down_proj": 5}, "rank_pattern": {r".*\.q_proj": 2}},
        {
            "alpha_pattern": {"layers.1.self_attn.q_proj": 32},
            "rank_pattern": {"0.mlp.down_proj": 1},
            "use_rslora": True,
        },
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "v_proj", "lm_head"]},
        {"modules_to_save": ["norm", "embed_tokens"], "init_lora_weights": "gaussian"},
    ],
    ids=[
        "plain",
        "rslora",
        "all-linear",
        "patterns",
        "patterns-rslora",
        "head",
        "adapted-head",
        "norms",
    ],
)
def test_adapter_gives_what_peft_merges(
    tiny_llama: Callable[..., Path], tiny_lora: Callable[..., Path], config: dict[str, Any]
) -> None:
    base = tiny_llama()
    adapter = tiny_lora(base, **config)
    expected, found = merged_by_peft(adapter, base), adapted(adapter, base)
    assert expected.keys() == found.keys()
    changed = 0
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-6), name
        changed += not torch.equal(found[name], load_file(base / "model.safetensors")[name])
    assert changed >= 4


@pytest.mark.parametrize("columns", [7, 64, 70_000])
def test_where_a_read_begins_does_not_change_a_bit(tmp_path: Path, columns: int) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    rows = 5 if columns > 1000 else 2000
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = torch.randn(rows, columns, generator=generator).bfloat16()
    save_file({name: weight}, base / "model.safetensors")
    a, b = torch.randn(3, columns, generator=generator), torch.randn(rows, 3, generator=generator)
    pair = {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}
    save_file(pair, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    whole = adapted(adapter, base)[name].view(-1)
    exact = weight.double() + 2.0 * (b.double() @ a.double())
    assert torch.allclose(whole.double(), exact.view(-1), rtol=1e-6, atol=1e-6)
    reader = AdapterReader(open_adapter(adapter, base), "F32")
    for start, stop in ((0, 1), (5, 4097), (columns, 3 * columns + 1), (9999, rows * columns)):
        assert read_range(reader, name, start, stop).equal(whole[start:stop])
    reader.close()


@pytest.mark.parametrize("word", ["bfloat16", "float32"])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_a_kernel_adds_the_product_as_torch_does(
    rank: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no byte depends on whether the kernels were there already."""
    generator = torch.Generator().manual_seed(rank)
    name, shape = "model.layers.0.self_attn.q_proj.weight", (9, 1500)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    weight = torch.randn(shape, generator=generator).to(getattr(torch, word))
    save_file({name: weight}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "x"}')
    factors = {"A": torch.randn(rank, 1500), "B": torch.randn(9, rank)}
    save_file(
        {f"{LAYER}.lora_{part}.weight": factors[part] for part in "AB"},
        adapter / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    exact = weight.double() + 3 / rank * (factors["B"].double() @ factors["A"].double())
    assert kernels().result()
    reader = AdapterReader(open_adapter(adapter, base), "F32")
    for start, stop in ((0, 9 * 1500), (1499, 4601), (3000, 3001)):
        found = read_range(reader, name, start, stop)
        with monkeypatch.context() as patched:
            patched.setattr("mergeops.adapters.adapter_reader.is_loaded", lambda: False)
            plain = read_range(reader, name, start, stop)
        assert found.view(torch.int32).equal(plain.view(torch.int32))
        torch.testing.assert_close(found.double(), exact.view(-1)[start:stop], rtol=1e-6, atol=1e-6)
    reader.close()


def edited(adapter: Path, out: Path, **settings: Any) -> Path:
    copy = Path(shutil.copytree(adapter, out))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | settings))
    return copy


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "use_dora is True, but .*_proj has no lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_bias is True, but .*_proj has no lora_B.bias"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is .*, but .*_proj has no lora_diag"),
        ({"peft_type": "LILY"}, "mixes its projections anew for every input"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is set"),
        ({"invented_later": 1}, "invented_later is 1, which mergeops cannot apply"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda', which changed the base"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it takes a positive number"),
        ({"lora_alpha": None}, "lora_alpha is missing; it takes a positive number"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern has '\(', no pattern"),
        ({"r": 5}, r"lora_A.weight has shape .* ask for \[5, 64\]; set the source.s base"),
    ],
)
def test_what_cannot_be_applied_exactly_is_refused(
    tiny_llama: Callable[..., Path],
    tiny_lora: Callable[..., Path],
    tmp_path: Path,
    settings: dict[str, Any],
    match: str,
) -> None:
    base = tiny_llama()
    adapter = edited(tiny_lora(base), tmp_path / "adapter", **settings)
    with pytest.raises(SourceError, match=match):
        open_adapter(adapter, base)


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            (4, 128),
            "embed_tokens.weight has no lora_B",
        ),
        (f"{LAYER}.lora_magnitude_vector", (32,), "use_dora is False, but .* a lora_magnitude"),
        (f"{LAYER}.lora_B.bias", (32,), "lora_bias is False, but .* has a lora_B.bias"),
        (f"{LAYER}.lora_new.weight", (32,), "lora_new.weight is of a kind that mergeops does not"),
        ("base_model.model.model.norm.weight", (33,), r"has shape \[33\], but .* \[32\]"),
        ("base_model.model.other.weight", (3,), "applies to other.weight, which .* does not have"),
        ("base_model.model.lm_head.weight", (130, 32), "different numbers of rows"),
        (
            "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
            (4, 32),
            "k_proj.weight has no lora_B",
        ),
    ],
)
def test_unknown_tensors_in_an_adapter_are_refused(
    tiny_llama: Callable[..., Path],
    tiny_lora: Callable[..., Path],
    tmp_path: Path,
    key: str,
    shape: tuple[int, ...],
    match: str,
) -> None:
    base = tiny_llama()
    adapter = edited(tiny_lora(base), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[key] = torch.zeros(shape)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=match):
        open_adapter(adapter, base)


def test_adapter_on_a_vector_is_refused(
    tiny_llama: Callable[..., Path], tiny_lora: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_llama()
    adapter = edited(tiny_lora(base), tmp_path / "adapter")
    norm = "base_model.model.model.norm"
    pair = {f"{norm}.lora_A.weight": torch.zeros(4, 32), f"{norm}.lora_B.weight": torch.zeros(1, 4)}
    save_file(pair, adapter / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"model.norm.weight is F32 \[32\]; LoRA is supported on"):
        open_adapter(adapter, base)


def test_missing_adapter_file_says_how_to_save_it(
    tiny_llama: Callable[..., Path], tiny_lora: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_llama()
    adapter = edited(tiny_lora(base), tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(SourceError, match=r"it has adapter_model.bin; .*safe_serialization=True"):
        open_adapter(adapter, base)
