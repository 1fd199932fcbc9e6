"""LoRA with everything that its config may say, against the adapted model in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.adapted_models import Adapted, adapt, logits, merged, shaken, tiny

from mergeops.adapters import open_adapter
from mergeops.errors import SourceError

TWO = ["q_proj", "down_proj"]


def lora(**more: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": TWO, "init_lora_weights": False, **more})


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return shaken(GPT2LMHeadModel(config))


def check(adapted: Adapted, out: Path) -> None:
    largest = adapted.logits.abs().max()
    assert (adapted.logits - adapted.base_logits).abs().max() > 1e-3 * largest
    assert (merged(adapted, out) - adapted.logits).abs().max() <= 1e-5 * largest


TRAINABLE_BIAS = {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (TRAINABLE_BIAS, {"bias": "all"}),
        (TRAINABLE_BIAS, {"bias": "lora_only"}),
        (TRAINABLE_BIAS, {"lora_bias": True}),
        (TRAINABLE_BIAS, {"use_dora": True}),
        ({}, {"target_modules": ["embed_tokens", "q_proj"]}),
        ({}, {"target_modules": ["embed_tokens", "lm_head"]}),
        ({}, {"target_modules": ["embed_tokens"], "use_dora": True}),
        ({}, {"trainable_token_indices": [5, 3, 10]}),
        ({}, {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
        ({}, {"target_parameters": ["q_proj.weight"], "target_modules": ["v_proj"]}),
        ({}, {"use_rslora": True, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}}),
        ({}, {"alpha_pattern": {r"layers\.1\.mlp.*": 32, "q_proj": 2}}),
    ],
    ids=[
        "bias-all",
        "bias-lora-only",
        "lora-bias",
        "dora-with-biases",
        "embeddings",
        "embeddings-and-head",
        "embeddings-dora",
        "token-rows",
        "modules-to-save",
        "parameters",
        "anchored-rank",
        "alpha-expression",
    ],
)
def test_merge_computes_what_the_adapted_model_computes(
    model: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    check(adapt(tiny(**model), lora(**config), tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [5, 3, 10]},
        {"trainable_token_indices": {"embed_tokens": [5, 10], "lm_head": [3]}},
    ],
    ids=lambda config: "-".join(f"{k}={v}" for k, v in config.items()),
)
def test_tied_embeddings_and_head_become_what_the_adapted_model_has(
    config: dict[str, Any], tmp_path: Path
) -> None:
    check(adapt(tiny(tie_word_embeddings=True), lora(**config), tmp_path), tmp_path / "out")


def test_head_of_its_own_is_said(tmp_path: Path) -> None:
    config = lora(modules_to_save=["embed_tokens"])
    adapted = adapt(tiny(tie_word_embeddings=True), config, tmp_path)
    (note,) = open_adapter(adapted.adapter, adapted.base).notes
    assert "lm_head.weight and model.embed_tokens.weight apart, which its base ties" in note


@pytest.mark.parametrize("use_dora", [False, True])
def test_square_transposed_layers_are_told_from_linear_ones(use_dora: bool, tmp_path: Path) -> None:
    config = lora(target_modules=["c_proj", "c_attn"], use_dora=use_dora)
    check(adapt(gpt2(), config, tmp_path), tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_that_grew_is_as_large_in_the_merge(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    tiny(tie_word_embeddings=tied).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(52, mean_resizing=False)
    from peft import get_peft_model

    peft = shaken(get_peft_model(model, lora()), 5, trained_only=True)
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    expected = logits(peft.eval())
    adapted = Adapted(base, tmp_path / "adapter", expected, expected)
    found = merged(adapted, tmp_path / "out")
    assert found.shape[-1] == 52
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 52


def test_tensors_that_still_have_the_adapters_name_are_read(tmp_path: Path) -> None:
    adapted = adapt(tiny(), lora(), tmp_path)
    file = adapted.adapter / "adapter_model.safetensors"
    named = {
        key.replace(".weight", ".math.weight"): value for key, value in load_file(file).items()
    }
    save_file(named, file)
    check(adapted, tmp_path / "out")


def test_bias_on_a_layer_without_one_is_refused(tmp_path: Path) -> None:
    adapted = adapt(tiny(), lora(lora_bias=True), tmp_path)
    with pytest.raises(SourceError, match="adds a bias to .*_proj, which has none"):
        open_adapter(adapted.adapter, adapted.base)


def test_replicated_layers_are_layers_of_the_merge(tmp_path: Path) -> None:
    config = lora(layer_replication=[[0, 2], [1, 2]])
    check(adapt(tiny(), config, tmp_path), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def edited(adapted: Adapted, **changes: Any) -> None:
    file = adapted.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"layer_replication": [[0, 3]]}, r"it takes a list of \[from, to\] from 0 to 2"),
        ({"layer_replication": {"a": 1}}, r"it takes a list of \[from, to\] from 0 to 2"),
        ({"trainable_token_indices": [3]}, "names trainable_token_indices, but .* has nothing"),
        ({"modules_to_save": ["norm"]}, "names modules_to_save norm, but .* has nothing of it"),
    ],
)
def test_what_the_config_names_and_the_files_lack_is_refused(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    adapted = adapt(tiny(), lora(), tmp_path)
    edited(adapted, **changes)
    with pytest.raises(SourceError, match=match):
        open_adapter(adapted.adapter, adapted.base)


def test_modules_that_the_file_has_nothing_for_and_a_base_of_four_bits_are_said(
    tmp_path: Path,
) -> None:
    adapted = adapt(tiny(), lora(), tmp_path)
    named = {"target_modules": [*TWO, "v_proj"], "base_model_name_or_path": "org/x-bnb-4bit"}
    edited(adapted, **named)
    first, second = open_adapter(adapted.adapter, adapted.base).notes
    assert "trained on org/x-bnb-4bit, the same model with weights of 4 bits" in first
    assert "(2, e.g. model.layers.0.self_attn.v_proj); they stay as in the base" in second


def test_modules_that_are_called_otherwise_on_disk_are_not_said_to_be_missing(
    tmp_path: Path,
) -> None:
    adapted = adapt(gpt2(), lora(target_modules=["c_attn"]), tmp_path)
    file = adapted.base / "model.safetensors"
    bare = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert open_adapter(adapted.adapter, adapted.base).notes == ()
    check(adapted, tmp_path / "out")


def experts(kind: str) -> Any:
    import transformers

    sizes = {
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    more = {
        "Mixtral": {"num_local_experts": 4},
        "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2},
        "GptOss": {"num_local_experts": 4, "intermediate_size": 32, "num_experts_per_tok": 2},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **more})
    return shaken(getattr(transformers, f"{kind}ForCausalLM")(config))


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "GptOss"])
@pytest.mark.parametrize(
    "names",
    [
        ["mlp.experts.gate_up_proj"],
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ["0.mlp.experts.down_proj", "0.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"],
    ],
    ids=["one", "both", "of-named-layers"],
)
def test_factors_of_fused_experts_go_to_each_expert(
    kind: str, names: list[str], tmp_path: Path
) -> None:
    config = lora(target_modules=["q_proj"], target_parameters=names)
    check(adapt(experts(kind), config, tmp_path), tmp_path / "out")


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_parameters_that_peft_names_for_all_linear_layers_are_those_that_a_module_has(
    kind: str, tmp_path: Path
) -> None:
    # PEFT writes gate_up_proj and gate.weight, without the module that has them.
    check(adapt(experts(kind), lora(target_modules="all-linear"), tmp_path), tmp_path / "out")


def test_factors_that_fit_no_named_parameter_are_refused(tmp_path: Path) -> None:
    config = lora(target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    adapted = adapt(experts("Mixtral"), config, tmp_path)
    file = adapted.adapter / "adapter_config.json"
    changed = {"target_parameters": ["mlp.experts.down_proj"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(SourceError, match="fit 0 of model.layers.0.mlp.experts.down_proj"):
        open_adapter(adapted.adapter, adapted.base)
