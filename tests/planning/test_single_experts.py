"""Experts of a layer in one tensor are merged with experts one by one, and adapted one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mergeops.engine import merge
from mergeops.errors import MergeError

Make = Callable[..., Any]
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 32, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"intermediate_size": 24, "num_local_experts": 3},
    "Qwen3Moe": {"moe_intermediate_size": 24, "num_experts": 3, "head_dim": 8},
    "Olmoe": {"intermediate_size": 24, "num_experts": 3},
}


def saved(family: str, folder: Path, seed: int, *, original: bool) -> Path:
    """A model as transformers 4 keeps it (experts one by one), or as 5 holds it in memory."""
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    torch.manual_seed(seed)
    cls = getattr(transformers, f"{family}ForCausalLM")
    cls(config).save_pretrained(folder, save_original_format=original)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["one_by_one", "joined"])
def test_both_layouts_of_experts_are_averaged(
    family: str, first: str, plan_of: Make, tmp_path: Path
) -> None:
    inputs = {
        "one_by_one": saved(family, tmp_path / "one_by_one", 1, original=True),
        "joined": saved(family, tmp_path / "joined", 2, original=False),
    }
    ordered = {first: inputs.pop(first), **inputs}
    plan = plan_of({"name": "linear"}, None, ordered)
    assert any("joined has the experts of a layer in one tensor" in note for note in plan.warnings)
    merge(plan, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    one = load_file(tmp_path / "one_by_one" / "model.safetensors")
    other = load_file(saved(family, tmp_path / "twin", 2, original=True) / "model.safetensors")
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2, rtol=0, atol=1e-7)


def test_the_digest_knows_what_was_cut(plan_of: Make, tmp_path: Path) -> None:
    one = saved("Mixtral", tmp_path / "one", 1, original=True)
    joined = saved("Mixtral", tmp_path / "joined", 2, original=False)
    plan = plan_of({"name": "linear"}, None, {"one": one, "joined": joined})
    again = type(plan).from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.digest == plan.digest
    cut = again.sources[1].cut
    assert cut["model.layers.0.block_sparse_moe.experts.1.w2.weight"].start == 16 * 24


def test_experts_of_another_number_are_refused(plan_of: Make, tmp_path: Path) -> None:
    one = saved("Mixtral", tmp_path / "one", 1, original=True)
    FAMILIES["Mixtral"]["num_local_experts"] = 4
    try:
        joined = saved("Mixtral", tmp_path / "joined", 2, original=False)
    finally:
        FAMILIES["Mixtral"]["num_local_experts"] = 3
    with pytest.raises(MergeError, match="num_local_experts is 3 in one and 4 in joined"):
        plan_of({"name": "linear"}, None, {"one": one, "joined": joined})


@pytest.mark.parametrize("targets", [("w1",), ("w2",), ("w1", "w2", "w3")])
def test_an_adapter_with_lora_on_each_expert_applies_to_experts_in_one_tensor(
    targets: tuple[str, ...], plan_of: Make, tmp_path: Path
) -> None:
    joined = saved("Mixtral", tmp_path / "joined", 2, original=False)
    before = load_file(saved("Mixtral", tmp_path / "twin", 2, original=True) / "model.safetensors")
    factors, expected = {}, dict(before)
    torch.manual_seed(5)
    for name, weight in before.items():
        if name.rpartition(".weight")[0].endswith(targets) and ".experts." in name:
            a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            expected[name] = (weight.double() + 2.0 * (b.double() @ a.double())).float()
    gate = "model.layers.0.block_sparse_moe.gate"
    a, b = torch.randn(2, 16), torch.randn(3, 2)
    factors |= {f"base_model.model.{gate}.lora_{k}.weight": v for k, v in (("A", a), ("B", b))}
    expected[f"{gate}.weight"] = (before[f"{gate}.weight"].double() + 2.0 * (b @ a)).float()
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file(factors, lora / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [*targets, "gate"]}
    (lora / "adapter_config.json").write_text(json.dumps(said))
    plan = plan_of({"name": "passthrough"}, None, {"a": (lora, joined)})
    merge(plan, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
