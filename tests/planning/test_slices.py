"""Slices and modules on models of several kinds, and inputs that differ in heads and buffers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.engine.execute import merge
from mergeops.engine.jobs import work_of
from mergeops.errors import ConfigError, MergeError
from mergeops.planning.stacks import find_stacks, pick, resized
from mergeops.recipe.recipe import Recipe

Make = Callable[..., Any]
SIZES = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def saved(config: Any, folder: Path, seed: int, auto: str = "AutoModelForCausalLM") -> Path:
    import transformers

    torch.manual_seed(seed)
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return folder


def gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(**SIZES, n_embd=16, n_layer=4, n_head=2, n_positions=32)


def gpt_neo() -> Any:
    from transformers import GPTNeoConfig

    return GPTNeoConfig(
        **SIZES,
        hidden_size=16,
        num_layers=4,
        num_heads=2,
        attention_types=[[["global", "local"], 2]],
        max_position_embeddings=32,
        window_size=8,
    )


def mixtral() -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(
        **SIZES,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )


def qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        **SIZES,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        layer_types=["full_attention", "sliding_attention"] * 2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    )


def t5() -> Any:
    from transformers import T5Config

    sizes = {k: v for k, v in SIZES.items() if k != "bos_token_id"}
    return T5Config(
        **sizes,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_layers=3,
        num_decoder_layers=4,
        num_heads=2,
        decoder_start_token_id=0,
    )


DECODERS = {"gpt2": gpt2, "gpt_neo": gpt_neo, "mixtral": mixtral, "qwen3": qwen3}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("name", DECODERS)
def test_stacked_layers_of_a_decoder_load_and_generate(
    name: str, plan_of: Make, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    sources = {n: saved(DECODERS[name](), tmp_path / n, i) for i, n in enumerate("ab")}
    slices = [{"sources": {"a": [0, 4]}}, {"sources": {"b": [2, 4]}}]
    plan = plan_of({"name": "passthrough"}, None, sources, slices=slices)
    out = merge(plan, tmp_path / "out")
    a, b, found = tensors_of(sources["a"]), tensors_of(sources["b"]), tensors_of(out)
    (stack,) = find_stacks(a, json.loads((sources["a"] / "config.json").read_text()))
    for tensor, value in found.items():
        place = stack.layer(tensor)
        if place is not None:
            k, suffix = place
            source, i = (a, k) if k < 4 else (b, k - 2)
            assert value.equal(source[f"{stack.prefix}{i}.{suffix}"])
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.num_hidden_layers == 6
    tokens = torch.tensor([[5, 6, 7]])
    assert model.generate(tokens, max_new_tokens=2, do_sample=False).shape[0] == 1
    if name == "qwen3":
        assert model.config.layer_types == ["full_attention", "sliding_attention"] * 3
    if name == "gpt_neo":
        assert model.config.attention_layers == ["global", "local"] * 3


def test_encoder_and_decoder_are_sliced_each_for_itself(plan_of: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    auto = "AutoModelForSeq2SeqLM"
    sources = {n: saved(t5(), tmp_path / n, i, auto) for i, n in enumerate("ab")}
    modules = {
        "encoder": {"slices": [{"sources": {"a": [1, 3]}}, {"sources": {"b": [1, 2]}}]},
        "decoder": {"slices": [{"sources": {"b": [0, 2]}}]},
    }
    plan = plan_of({"name": "passthrough"}, None, sources, modules=modules)
    out = merge(plan, tmp_path / "out")
    a, b, found = tensors_of(sources["a"]), tensors_of(sources["b"]), tensors_of(out)
    of_encoder = "encoder.block.{}.layer.1.DenseReluDense.wi.weight"
    assert found[of_encoder.format(0)].equal(a[of_encoder.format(1)])
    assert found[of_encoder.format(2)].equal(b[of_encoder.format(1)])
    # Only the first layer has the positions of all layers.
    positions = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert found[positions].equal(a[positions])
    assert found["encoder.final_layer_norm.weight"].equal(b["encoder.final_layer_norm.weight"])
    assert found["shared.weight"].equal(b["shared.weight"])
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert (model.config.num_layers, model.config.num_decoder_layers) == (3, 2)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[0] == 1


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = LlamaConfig(
        **SIZES,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=63)


def test_slices_of_a_multimodal_model_are_those_of_its_text(plan_of: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    auto = "AutoModelForImageTextToText"
    sources = {n: saved(llava(), tmp_path / n, i, auto) for i, n in enumerate("ab")}
    slices = [{"sources": {"a": [0, 4]}}, {"sources": {"b": [2, 4]}}]
    out = merge(plan_of({"name": "passthrough"}, None, sources, slices=slices), tmp_path / "out")
    model, loading = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.text_config.num_hidden_layers == 6
    assert model.config.vision_config.num_hidden_layers == 3
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2).shape[0] == 1
    a, found = tensors_of(sources["a"]), tensors_of(out)
    vision = [name for name in a if "vision" in name]
    assert vision
    assert all(found[name].equal(a[name]) for name in vision)


def bart() -> Any:
    from transformers import BartConfig

    return BartConfig(
        **SIZES,
        d_model=16,
        encoder_layers=3,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=32,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )


def test_both_numbers_of_layers_of_an_encoder_decoder_are_written(
    plan_of: Make, tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    source = saved(bart(), tmp_path / "a", 0, "AutoModelForSeq2SeqLM")
    modules = {
        "encoder": {"slices": [{"sources": {"a": [0, 2]}}]},
        "decoder": {"slices": [{"sources": {"a": [0, 2]}}, {"sources": {"a": [1, 2]}}]},
    }
    plan = plan_of({"name": "passthrough"}, None, {"a": source}, modules=modules)
    out = merge(plan, tmp_path / "out")
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert (model.config.encoder_layers, model.config.decoder_layers) == (2, 3)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[0] == 1


def test_a_module_may_be_merged_whole_with_parameters_of_its_own(
    plan_of: Make, tmp_path: Path
) -> None:
    auto = "AutoModelForSeq2SeqLM"
    sources = {n: saved(t5(), tmp_path / n, i, auto) for i, n in enumerate("ab")}
    modules = {
        "encoder": {"sources": {"a": {"weight": 3.0}, "b": {"weight": 1.0}}},
        "decoder": {"sources": {"a": None, "b": None}, "weight": [1.0, 2.0]},
    }
    plan = plan_of({"name": "linear"}, None, sources, modules=modules)
    weights = {t.name: t.per_source["weight"] for s in plan.shards for t in s.tensors}
    assert weights["encoder.block.1.layer.0.SelfAttention.q.weight"] == (3.0, 1.0)
    assert weights["decoder.block.0.layer.0.SelfAttention.q.weight"] == (1.0, 1.0)
    assert weights["decoder.block.3.layer.0.SelfAttention.q.weight"] == (2.0, 2.0)


def test_a_module_without_layers_has_parameters_of_its_own(plan_of: Make, tmp_path: Path) -> None:
    auto = "AutoModelForSeq2SeqLM"
    sources = {n: saved(t5(), tmp_path / n, i, auto) for i, n in enumerate("ab")}
    modules = {
        "shared": {"sources": {"a": {"weight": 5.0}, "b": {"weight": 1.0}}},
        "encoder": {"sources": {"a": {"weight": 3.0}, "b": {"weight": 1.0}}},
    }
    plan = plan_of({"name": "linear"}, None, sources, modules=modules)
    weights = {t.name: t.per_source["weight"] for s in plan.shards for t in s.tensors}
    assert weights["shared.weight"] == (5.0, 1.0)
    assert weights["encoder.block.1.layer.0.SelfAttention.q.weight"] == (3.0, 1.0)
    assert weights["decoder.block.1.layer.0.SelfAttention.q.weight"] == (1.0, 1.0)


def test_several_stacks_need_modules(plan_of: Make, tmp_path: Path) -> None:
    source = saved(t5(), tmp_path / "a", 0, "AutoModelForSeq2SeqLM")
    slices = [{"sources": {"a": [0, 2]}}]
    with pytest.raises(ConfigError, match="several stacks of layers; use modules: .*encoder.block"):
        plan_of({"name": "passthrough"}, None, {"a": source}, slices=slices)
    modules = {"vision": {"slices": slices}}
    with pytest.raises(ConfigError, match="modules.vision is no stack of layers; allowed: "):
        plan_of({"name": "passthrough"}, None, {"a": source}, modules=modules)


VISION = [f"model.vision_tower.encoder.layers.{i}.w" for i in range(2)]
TEXT = [f"model.language_model.layers.{i}.mlp.w" for i in range(3)]


def test_stacks_of_a_multimodal_model_are_counted_where_they_belong() -> None:
    config = {
        "text_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
        "vision_config": {"num_hidden_layers": 2},
    }
    names = [*VISION, *TEXT, "model.projector.0.w", "model.projector.2.w"]
    vision, text = find_stacks(names, config)
    assert (vision.kind, vision.section, vision.count) == ("vision", ("vision_config",), 2)
    assert (text.kind, text.section, text.count) == ("text", ("text_config",), 3)
    assert pick([vision, text], None) == text
    assert pick([vision, text], "vision_tower") == pick([vision, text], "vision") == vision
    assert pick([vision, text], "text_decoder") == text
    changes = resized(text, config, [(config, 2), (config, 0)])
    assert changes == {"text_config": {"num_hidden_layers": 2, "layer_types": ["c", "a"]}}


def test_lists_of_layer_numbers_are_renumbered() -> None:
    config = {"num_hidden_layers": 3, "mlp_only_layers": [0, 2]}
    (stack,) = find_stacks([f"layers.{i}.w" for i in range(3)], config)
    layers = [(config, 0), (config, 1), (config, 2), (config, 2)]
    assert resized(stack, config, layers)["mlp_only_layers"] == [0, 2, 3]


def test_layers_that_a_setting_counts_from_the_first_must_come_first() -> None:
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 2, "moe_layers": [2, 3]}
    (stack,) = find_stacks([f"model.layers.{i}.w" for i in range(4)], config)
    changes = resized(stack, config, [(config, i) for i in (1, 2, 2, 3, 3)])
    assert changes == {
        "num_hidden_layers": 5,
        "first_k_dense_replace": 1,
        "moe_layers": [1, 2, 3, 4],
    }
    with pytest.raises(MergeError, match="layer 2 of the merge is one of those that first_k_dense"):
        resized(stack, config, [(config, i) for i in (0, 3, 1)])


def test_layers_of_several_kinds_must_stay_where_the_config_expects_them(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_llama(layers=3), tmp_path / "a"))
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["OursForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    content = load_file(model / "model.safetensors")
    content["model.layers.0.dense.weight"] = torch.ones(2)
    del content["model.layers.0.mlp.up_proj.weight"]
    save_file(content, model / "model.safetensors", metadata={"format": "pt"})
    kept = [{"sources": {"a": [0, 3]}}, {"sources": {"a": [1, 3]}}]
    plan_of({"name": "passthrough"}, None, {"a": model}, slices=kept)
    moved = [{"sources": {"a": [1, 3]}}]
    with pytest.raises(MergeError, match="layer 0 of the merge would be of another kind than conf"):
        plan_of({"name": "passthrough"}, None, {"a": model}, slices=moved)
    with pytest.raises(MergeError, match="layer 1 of a and layer 0 of a are of different kinds"):
        plan_of(
            {"name": "linear"},
            None,
            {"a": model},
            slices=[
                {
                    "sources": [
                        {"source": "a", "layers": [0, 1]},
                        {"source": "a", "layers": [1, 2]},
                    ]
                }
            ],
        )


def test_a_random_method_draws_anew_for_every_layer_that_is_used(
    plan_of: Make, tiny_llama: Make
) -> None:
    base = tiny_llama()
    source = tiny_llama(like=base, seed=1)
    part = {"source": "a", "layers": [0, 1]}
    slices = [{"sources": [part, part, {**part, "layers": [1, 2]}], "base": [0, 1]}]
    plan = plan_of({"name": "dare_linear"}, base, {"a": source}, slices=slices)
    work = work_of(plan)
    keys = work.keys(next(job for name, job in work.jobs.items() if "layers.0" in name), plan.seed)
    assert len(set(keys)) == 3


BAD_SLICES = [
    ({"slices": 3}, "slices is 3; write a list"),
    ({"slices": [{}]}, r"slices\[0\] is {}; it needs sources"),
    ({"slices": [{"sources": 3}]}, r"slices\[0\].sources is 3; write"),
    (
        {"slices": [{"sources": {"x": [0, 1]}}]},
        r"source is 'x', no source's name; allowed: base, a",
    ),
    ({"slices": [{"sources": {"a": [1, 1]}}]}, r"layers is \[1, 1\]; it takes two whole numbers"),
    ({"slices": [{"sources": {"a": 3}}]}, r"slices\[0\].sources.a is 3; write a range"),
    ({"slices": [{"sources": ["a"]}]}, r"slices\[0\].sources\[0\] is 'a'; write {source: NAME"),
    (
        {"slices": [{"sources": {"a": [0, 1], "b": [0, 2]}}]},
        r"slices\[0\] merges ranges of different length: \[0, 1\] of a, \[0, 2\] of b",
    ),
    (
        {"slices": [{"sources": {"a": {"layers": [0, 1], "wieght": 1}}}]},
        r"unknown key slices\[0\].sources\[0\].wieght of linear; did you mean 'weight'",
    ),
    (
        {"slices": [{"sources": {"a": [0, 1]}, "weight": [{"mach": "*", "value": 1}]}]},
        r"unknown key slices\[0\].weight\[0\].mach; did you mean 'match'",
    ),
    ({"modules": 3}, "modules is 3; write"),
    ({"modules": {"encoder": {}}}, "modules.encoder is {}; it needs either slices or sources"),
    ({"modules": {"encoder": {"slices": []}}}, "modules.encoder.slices is empty"),
    (
        {"modules": {"encoder": {"sources": {"a": [0, 1]}}}},
        r"layers is \[0, 1\]; ranges of layers belong into slices",
    ),
    (
        {"slices": [{"sources": {"a": [0, 1]}}], "modules": {"e": {"sources": {"a": None}}}},
        "slices and modules are both given",
    ),
    ({"merges": 3}, "merges is 3; write {NAME: RECIPE}"),
    ({"merges": {"x": 3}}, "merges.x: it is 3; write a recipe"),
    ({"base": "merge:x"}, "the recipe names merge:x, but no such merge .*known there: none"),
    ({"tied_head": "maybe"}, "tied_head is 'maybe'; allowed: refuse, untie, tie"),
    ({"missing": "skip"}, "missing is 'skip'; allowed: refuse, leave_out"),
    ({"compat": "yes"}, "compat is 'yes'; allowed: mergekit"),
]


@pytest.mark.parametrize(("extra", "match"), BAD_SLICES, ids=range(len(BAD_SLICES)))
def test_what_slices_get_wrong_is_named(extra: dict[str, Any], match: str) -> None:
    raw = {"method": "linear", "sources": {"a": {"uri": "a"}, "b": {"uri": "b"}}}
    with pytest.raises(ConfigError, match=match):
        Recipe.from_dict({**raw, **extra})


def test_sliced_recipes_survive_the_round_trip_through_plain_types() -> None:
    raw = {
        "method": {"name": "ties"},
        "base": "base",
        "sources": {"a": {"uri": "a", "weight": [{"match": "*mlp*", "value": [0.0, 1.0]}, 0.5]}},
        "modules": {
            "encoder": {
                "slices": [{"sources": {"a": [0, 2]}, "base": [1, 3], "density": 0.5}],
                "scale": 2.0,
            },
            "decoder": {"sources": [{"source": "a", "weight": 0.1}], "base": {}},
        },
        "merges": {"x": {"method": {"name": "linear"}, "sources": {"q": {"uri": "q"}}}},
    }
    recipe = Recipe.from_dict(raw)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_slices_of_different_layers_must_say_which_of_the_base(
    plan_of: Make, tiny_llama: Make
) -> None:
    base = tiny_llama(layers=3)
    sources = {n: tiny_llama(like=base, seed=i) for i, n in enumerate("ab", 1)}
    one = {"sources": {"a": [0, 2], "b": [1, 3]}}
    with pytest.raises(ConfigError, match=r"slice 0 merges layers \[0, 2\], \[1, 3\]; say which"):
        plan_of({"name": "ties"}, base, sources, slices=[one])
    plan_of({"name": "ties"}, base, sources, slices=[{**one, "base": [1, 3]}])
    with pytest.raises(ConfigError, match="a slice names base, but the recipe has none"):
        plan_of({"name": "passthrough"}, None, sources, slices=[{"sources": {"base": [0, 1]}}])


def tied(model: Path, out: Path) -> Path:
    """The model without its head, as one that ties it to the embeddings."""
    copy = Path(shutil.copytree(model, out))
    content = load_file(copy / "model.safetensors")
    del content["lm_head.weight"]
    save_file(content, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return copy


@pytest.mark.parametrize("first", ["tied", "own"])
def test_a_head_in_one_only_is_merged_with_the_others_embeddings_or_dropped(
    first: str, plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    own = tiny_llama()
    other = tied(tiny_llama(seed=1), tmp_path / "tied")
    sources = {"tied": other, "own": own}
    if first == "own":
        sources = dict(reversed(sources.items()))
    plan = plan_of({"name": "linear"}, None, sources, tied_head="untie")
    assert any("lm_head.weight" in warning for warning in plan.warnings)
    out = merge(plan, tmp_path / "untied")
    a, b, found = tensors_of(own), tensors_of(other), tensors_of(out)
    expected = (a["lm_head.weight"] + b["model.embed_tokens.weight"]) / 2
    torch.testing.assert_close(found["lm_head.weight"], expected)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    out = merge(plan_of({"name": "linear"}, None, sources, tied_head="tie"), tmp_path / "again")
    assert "lm_head.weight" not in tensors_of(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def with_extra(model: Path, out: Path, **extra: torch.Tensor) -> Path:
    copy = Path(shutil.copytree(model, out))
    content = load_file(copy / "model.safetensors")
    content |= {name.replace("__", "."): tensor for name, tensor in extra.items()}
    save_file(content, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_buffers_that_only_some_have_are_left_out_with_a_warning(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    buffer = {"model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(4)}
    base = tiny_llama()
    old = with_extra(tiny_llama(like=base, seed=1), tmp_path / "old", **buffer)
    plan = plan_of({"name": "linear"}, None, {"a": base, "old": old})
    assert "1 buffer(s) that not all inputs have are left out" in plan.warnings[0]
    assert "inv_freq" not in str(plan.shards)


@pytest.mark.parametrize("both", [False, True])
def test_scales_of_activations_beside_plain_weights_are_left_out_and_said(
    plan_of: Make, tiny_llama: Make, tmp_path: Path, both: bool
) -> None:
    base = tiny_llama()
    scales = {
        f"model__layers__0__{name}": torch.ones(1)
        for name in ("self_attn__k_scale", "mlp__up_proj__input_scale")
    }
    a = with_extra(base, tmp_path / "a", **scales)
    b = tiny_llama(like=base, seed=1)
    b = with_extra(b, tmp_path / "b", **scales) if both else b
    plan = plan_of({"name": "linear"}, None, {"b": b, "a": a})
    said = [note for note in plan.warnings if note.startswith("2 scale(s) of activations")]
    assert len(said) == 1 + both
    assert "the weights of a: model.layers.0." in said[-1]
    assert tensors_of(merge(plan, tmp_path / "out")).keys() == tensors_of(base).keys()


def test_tensors_that_only_some_have_are_merged_from_those_if_asked(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama()
    a = with_extra(tiny_llama(like=base, seed=1), tmp_path / "a", model__bias=torch.ones(4))
    b = with_extra(tiny_llama(like=base, seed=2), tmp_path / "b", model__bias=torch.full((4,), 3.0))
    c = tiny_llama(like=base, seed=3)
    with pytest.raises(MergeError, match="has 1 tensor.* set missing=leave_out"):
        plan_of({"name": "linear"}, None, {"c": c, "a": a, "b": b})
    plan = plan_of({"name": "linear"}, None, {"c": c, "a": a, "b": b}, missing="leave_out")
    found = tensors_of(merge(plan, tmp_path / "mean"))
    assert found["model.bias"].equal(torch.full((4,), 2.0))
    plan = plan_of({"name": "ties"}, base, {"a": a, "c": c}, missing="leave_out")
    found = tensors_of(merge(plan, tmp_path / "taken"))
    assert found["model.bias"].equal(torch.ones(4))
    with pytest.raises(MergeError, match="the base lacks model.bias, which a, b have"):
        plan_of({"name": "ties"}, base, {"a": a, "b": b}, missing="leave_out")
