"""What transformers makes of a config.json: parameters, ties, and names on disk."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.tiny_models import ARCHITECTURES, MORE_ARCHITECTURES

from mergeops.architectures import ModelFit, asked_aside, kept_fits, read_fit, read_settings
from mergeops.checkpoint import open_checkpoint
from mergeops.errors import SourceError
from mergeops.kernels import user_cache

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Saved = Callable[..., tuple[Any, Config, Shapes]]

GEMMA3: tuple[str, dict[str, Any]] = (
    "Gemma3ForConditionalGeneration",
    {
        "text_config": {
            **{"vocab_size": 128, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8},
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        },
        "vision_config": {
            **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        },
        "mm_tokens_per_image": 4,
    },
)
EVERY = {**ARCHITECTURES, **MORE_ARCHITECTURES, "gemma3_vl": GEMMA3}


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """A model, and the config and shapes that transformers saves of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept_fits._answer.cache_clear()

    def make(family: str, **spelling: bool) -> tuple[Any, Config, Shapes]:
        name, settings = EVERY[family]
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**settings))
        model.save_pretrained(tmp_path / "model", **spelling)
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        stored = open_checkpoint(tmp_path / "model").tensors
        return model, config, {name: tensor.shape for name, tensor in stored.items()}

    return make


def fit(config: Mapping[str, Any], shapes: Shapes) -> ModelFit:
    found = read_fit(config, shapes)
    assert found is not None
    return found


@pytest.mark.parametrize("original", [True, False], ids=["old names", "new names"])
@pytest.mark.parametrize("family", EVERY)
def test_what_transformers_saves_fits_in_either_spelling(
    family: str, original: bool, saved: Saved
) -> None:
    model, config, shapes = saved(family, save_original_format=original)
    found = fit(config, shapes)
    assert found.is_whole
    assert found.model_class == type(model).__name__
    assert found.parameters == {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert {t for tensors in found.parts.values() for t in tensors} == set(shapes)


@pytest.mark.parametrize(
    ("family", "parameter", "tensors"),
    [
        ("llama", "model.norm.weight", ["model.norm.weight"]),
        ("llama_tied", "lm_head.weight", ["model.embed_tokens.weight"]),
        ("gpt_neox", "lm_head.weight", ["embed_out.weight"]),
        (
            "qwen2_vl",
            "model.language_model.layers.0.mlp.up_proj.weight",
            ["model.layers.0.mlp.up_proj.weight"],
        ),
        ("qwen2_vl", "model.visual.merger.ln_q.weight", ["visual.merger.ln_q.weight"]),
        (
            "gemma3_vl",
            "model.language_model.norm.weight",
            ["language_model.model.norm.weight"],
        ),
        (
            "mixtral",
            "model.layers.1.mlp.experts.down_proj",
            [f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight" for i in range(4)],
        ),
        (
            "qwen3_moe",
            "model.layers.0.mlp.experts.gate_up_proj",
            [
                f"model.layers.0.mlp.experts.{i}.{part}_proj.weight"
                for part in ("gate", "up")
                for i in range(4)
            ],
        ),
        ("llama", "model.layers.9.mlp.up_proj.weight", []),
    ],
)
def test_a_parameter_in_memory_is_found_on_disk(
    family: str, parameter: str, tensors: list[str], saved: Saved
) -> None:
    _, config, shapes = saved(family)
    assert list(fit(config, shapes).on_disk(parameter)) == tensors


def test_tensors_that_are_only_renamed_have_one_name_in_memory(saved: Saved) -> None:
    _, config, shapes = saved("mixtral")
    names = fit(config, shapes).in_memory()
    router = "model.layers.0.block_sparse_moe.gate.weight"
    assert names[router] == "model.layers.0.mlp.gate.weight"
    assert "model.layers.0.block_sparse_moe.experts.0.w2.weight" not in names


def test_names_without_the_beginning_are_found_where_only_one_ends_so(saved: Saved) -> None:
    _, config, shapes = saved("llama")
    found = fit(config, shapes)
    assert found.parameter("layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert found.parameter("model.norm.weight") == "model.norm.weight"
    assert found.parameter("weight") is None


def test_the_hub_names_of_gpt2_fit_the_model_with_a_head(saved: Saved) -> None:
    _, config, shapes = saved("gpt2")
    bare = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    found = fit(config, bare)
    assert found.is_whole
    assert found.on_disk("transformer.h.0.ln_1.weight") == ("h.0.ln_1.weight",)


def test_what_is_missing_odd_or_too_much_is_named(saved: Saved) -> None:
    _, config, shapes = saved("llama")
    shapes.pop("lm_head.weight")
    shapes["model.norm.weight"] = (7,)
    shapes["_orig_mod.model.norm.weight"] = (32,)
    found = fit(config, shapes)
    assert found.missing == ("lm_head.weight",)
    assert found.mismatched == {"model.norm.weight": ((7,), (32,))}
    assert found.unexpected == ("_orig_mod.model.norm.weight",)
    assert not found.is_whole


def test_experts_that_cannot_be_stacked_are_trouble(saved: Saved) -> None:
    _, config, shapes = saved("mixtral")
    shapes["model.layers.0.block_sparse_moe.experts.0.w2.weight"] = (3, 3)
    assert "conversion" in fit(config, shapes).trouble


def test_buffers_that_old_versions_saved_are_no_surprise(saved: Saved) -> None:
    _, config, shapes = saved("llama")
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (4,)
    assert fit(config, shapes).is_whole


def test_layers_that_predict_further_ahead_are_no_surprise(saved: Saved) -> None:
    _, config, shapes = saved("deepseek_v3")
    shapes["model.layers.4.eh_proj.weight"] = (32, 64)
    shapes["model.layers.4.mlp.gate_proj.weight"] = (64, 32)
    assert len(fit(config | {"num_nextn_predict_layers": 0}, shapes).unexpected) == 2
    assert fit(config | {"num_nextn_predict_layers": 1}, shapes).is_whole
    shapes["model.layers.5.eh_proj.weight"] = (32, 64)
    found = fit(config | {"num_nextn_predict_layers": 1}, shapes)
    assert found.unexpected == ("model.layers.5.eh_proj.weight",)


def test_a_config_that_names_no_class_is_for_the_one_that_fits(saved: Saved) -> None:
    _, config, shapes = saved("t5")
    del config["architectures"]
    assert fit(config, shapes).model_class == "T5ForConditionalGeneration"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "of_our_own"},
        {"model_type": "llama", "architectures": ["OursForCausalLM"]},
        {"model_type": "llama", "architectures": ["AutoConfig"]},
    ],
)
def test_a_model_that_transformers_does_not_know_has_no_fit(config: Config) -> None:
    assert read_fit(config, {"weight": (1,)}) is None


def test_a_config_that_makes_no_model_is_refused(saved: Saved) -> None:
    _, config, shapes = saved("llama")
    with pytest.raises(SourceError, match="cannot make the model that config.json describes"):
        read_fit({**config, "hidden_act": "nothing"}, shapes)
    with pytest.raises(SourceError, match="cannot make the model that config.json describes"):
        read_settings({**config, "num_hidden_layers": "two"})


def test_settings_are_alike_in_the_spellings_of_two_versions(saved: Saved) -> None:
    _, config, _ = saved("llama")
    old = {**config, "rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": config["dtype"]}
    del old["rope_parameters"], old["dtype"]
    assert read_settings(old) == read_settings(config)
    assert read_settings({"model_type": "of_our_own"}) is None


def test_an_answer_is_kept_and_a_damaged_one_asked_again(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, shapes = saved("mixtral")
    asked: list[str] = []
    ask = kept_fits.asked
    monkeypatch.setattr(kept_fits, "asked", lambda kind, q: asked.append(kind) or ask(kind, q))
    first = fit(config, shapes)
    (place,) = (tmp_path / "cache" / "mergeops" / "architectures").glob("*.json")
    kept_fits._answer.cache_clear()
    assert fit(config, shapes) == first
    assert asked == ["fit"]
    place.write_text(place.read_text()[:-9])
    kept_fits._answer.cache_clear()
    assert fit(config, shapes) == first
    assert asked == ["fit", "fit"]


def test_asking_leaves_the_random_state_and_the_logs_of_transformers_alone(saved: Saved) -> None:
    _, config, shapes = saved("llama")
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    level = transformers.logging.get_verbosity()
    fit({**config, "pad_token_id": 5}, shapes)
    assert torch.rand(1) == wanted
    assert transformers.logging.get_verbosity() == level


def test_layers_are_named_by_what_their_weights_mean() -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16}
    small = {"n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 32}
    fit = read_fit(config | small, {})
    assert fit is not None
    assert fit.layers["transformer.wte"] == "embedding"
    assert fit.layers["transformer.h.0.attn.c_proj"] == "conv1d"
    assert fit.layers["lm_head"] == "linear"
    assert "transformer.ln_f" not in fit.layers


def test_a_process_beside_says_what_transformers_says_here(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, shapes = saved("llama")
    del shapes["model.norm.weight"]
    here = read_fit(config, shapes)
    kept_fits._answer.cache_clear()
    shutil.rmtree(user_cache("architectures"))
    monkeypatch.delitem(sys.modules, "transformers")
    # Asked here it would say nothing.
    monkeypatch.setattr(asked_aside, "fit_of", lambda config, tensors: None)
    assert read_fit(config, shapes) == here
    assert "transformers" not in sys.modules
    broken = {**config, "hidden_act": "nothing"}
    with pytest.raises(SourceError, match="cannot make the model that config.json describes"):
        read_fit(broken, shapes)


def test_without_a_process_beside_there_is_no_answer_of_it(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved("llama")[1]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert asked_aside._aside("settings", [config]) is None
    monkeypatch.setattr(asked_aside, "_aside", lambda kind, question: None)
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(asked_aside, "settings_of", lambda config: {"asked": "here"})
    assert read_settings(config) == {"asked": "here"}
