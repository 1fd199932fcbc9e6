"""The result is the model that its config.json makes; names of one parameter are matched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_models import ARCHITECTURES, MORE_ARCHITECTURES

from mergeops.engine.execute import merge
from mergeops.errors import MergeError, SourceError

Make = Callable[..., Any]
Change = Callable[[dict[str, Any]], dict[str, Any]]


def rewritten(model: Path, out: Path, change: Change, **settings: Any) -> Path:
    """A copy with other tensors and settings; None takes a setting out."""
    shutil.copytree(model, out)
    content = change(load_file(out / "model.safetensors"))
    content = {name: tensor.clone() for name, tensor in content.items()}
    save_file(content, out / "model.safetensors", metadata={"format": "pt"})
    config = {**json.loads((out / "config.json").read_text()), **settings}
    config = {key: value for key, value in config.items() if value is not None}
    (out / "config.json").write_text(json.dumps(config))
    return out


def prefixed(prefix: str) -> Change:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def unchanged(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors


@pytest.fixture(scope="module")
def pair(tiny_llama: Make) -> tuple[Path, Path]:
    first = tiny_llama()
    return first, tiny_llama(like=first, seed=1)


def family(name: str, folder: Path, seed: int, **spelling: bool) -> Path:
    """A random model of a family, whatever its config says of tokens."""
    cls, settings = (ARCHITECTURES | MORE_ARCHITECTURES)[name]
    cls = getattr(transformers, cls)
    torch.manual_seed(seed)
    model = cls(cls.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(folder, **spelling)
    return folder


def loaded(folder: Path, cls: str = "LlamaForCausalLM") -> dict[str, torch.Tensor]:
    """What transformers makes of it; all of it is there."""
    model, told = getattr(transformers, cls).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return dict(model.state_dict())


def average(plan_of: Make, sources: dict[str, Path], **recipe: Any) -> Any:
    return plan_of({"name": "linear"}, None, sources, **recipe)


@pytest.mark.parametrize("words", ["_orig_mod.", "module.", "language_model.", "base_model.model."])
def test_words_of_a_wrapper_are_left_out_and_said(
    words: str, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    wrapped = {
        label: rewritten(model, tmp_path / label, prefixed(words))
        for label, model in zip("ab", pair, strict=True)
    }
    plan = average(plan_of, wrapped)
    assert any(words.rstrip(".") in note and "wrapper" in note for note in plan.warnings)
    merge(plan, tmp_path / "out")
    one, other = (loaded(model) for model in pair)
    for name, tensor in loaded(tmp_path / "out").items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)


def test_a_compiled_module_inside_the_model_is_found(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def compiled(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n.replace("layers.1.", "layers.1._orig_mod."): t for n, t in tensors.items()}

    a = rewritten(pair[0], tmp_path / "a", compiled)
    plan = average(plan_of, {"a": a, "b": pair[1]})
    assert {task.name for task in plan.tasks} == set(load_file(pair[0] / "model.safetensors"))


def test_names_that_no_unwrapping_explains_are_refused(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def other(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n.replace("self_attn", "attn"): t for n, t in tensors.items()}

    models = {
        label: rewritten(model, tmp_path / label, other)
        for label, model in zip("ab", pair, strict=True)
    }
    with pytest.raises(MergeError) as refused:
        average(plan_of, models)
    said = str(refused.value)
    assert (
        "config.json of a makes, LlamaForCausalLM: 8 of its 21 parameters would be random" in said
    )
    assert "model.layers.0.self_attn.k_proj.weight" in said
    assert "8 of 21 tensors have no place in it" in said
    assert "put the config.json that was saved with these weights into a" in said


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_names_of_a_peft_model_in_memory_are_refused(
    with_adapter: bool, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def adapted(tensors: dict[str, Any]) -> dict[str, Any]:
        names = {
            n: f"base_model.model.{n.replace('q_proj.weight', 'q_proj.base_layer.weight')}"
            for n in tensors
        }
        extra = {
            f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.default.weight": torch.ones(
                2, 32
            )
            for i in range(2 if with_adapter else 0)
        }
        return {names[n]: t for n, t in tensors.items()} | extra

    a = rewritten(pair[0], tmp_path / "a", adapted)
    words = "with the adapter's weights in it" if with_adapter else "without the adapter's weights"
    with pytest.raises(SourceError, match=f"a PEFT model in memory, .*, {words}; name the directo"):
        average(plan_of, {"a": a, "b": pair[1]})


@pytest.mark.parametrize("first", ["hub", "saved"])
def test_gpt2_of_the_hub_is_merged_with_what_transformers_saves(
    first: str, plan_of: Make, tmp_path: Path
) -> None:
    saved = family("gpt2", tmp_path / "saved", 1)
    other = family("gpt2", tmp_path / "other", 2)

    def bare(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n.removeprefix("transformer."): t for n, t in tensors.items()}

    hub = rewritten(other, tmp_path / "hub", bare)
    inputs = {"hub": hub, "saved": saved}
    plan = average(plan_of, {first: inputs.pop(first), **inputs})
    assert any("have another name in" in note for note in plan.warnings)
    merge(plan, tmp_path / "out")
    one, two = (loaded(model, "GPT2LMHeadModel") for model in (saved, other))
    for name, tensor in loaded(tmp_path / "out", "GPT2LMHeadModel").items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "gpt_neox"])
def test_old_and_new_names_of_one_model_are_matched(
    name: str, plan_of: Make, tmp_path: Path
) -> None:
    cls = (ARCHITECTURES | MORE_ARCHITECTURES)[name][0]
    old = family(name, tmp_path / "old", 1)
    new = family(name, tmp_path / "new", 2, save_original_format=False)
    merge(average(plan_of, {"old": old, "new": new}), tmp_path / "out")
    one, two = loaded(old, cls), loaded(new, cls)
    for parameter, tensor in loaded(tmp_path / "out", cls).items():
        torch.testing.assert_close(tensor, (one[parameter] + two[parameter]) / 2)


def test_models_that_nobody_knows_are_matched_by_one_prefix(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    own = {"architectures": ["OursForCausalLM"]}
    a = rewritten(pair[0], tmp_path / "a", unchanged, **own)
    b = rewritten(pair[1], tmp_path / "b", prefixed("inner.model."), **own)
    for sources in ({"a": a, "b": b}, {"b": b, "a": a}):
        plan = average(plan_of, sources)
        first = next(iter(sources.values()))
        assert {task.name for task in plan.tasks} == set(load_file(first / "model.safetensors"))
        merge(plan, tmp_path / next(iter(sources)) / "out")


def test_a_model_inside_another_class_is_matched_where_that_is_allowed(
    plan_of: Make, tmp_path: Path
) -> None:
    inner = transformers.BertConfig(**ARCHITECTURES["bert"][1])
    torch.manual_seed(0)
    transformers.BertModel(inner).save_pretrained(tmp_path / "base")
    a = family("bert", tmp_path / "a", 1)
    allowed = {"mixed_architectures": "allow", "missing": "leave_out"}
    plan = plan_of({"name": "task_arithmetic"}, tmp_path / "base", {"a": a}, **allowed)
    merge(plan, tmp_path / "out")
    said = " ".join(plan.warnings)
    assert "architectures is BertModel in base and BertForSequenceClassification in a" in said
    assert "bert.embeddings.LayerNorm.bias is embeddings.LayerNorm.bias there" in said
    assert "2 of 73 tensors come from a only" in said
    assert "2 tensor(s) have no place in BertModel" in said
    model, told = transformers.BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    base = loaded(tmp_path / "base", "BertModel")["pooler.dense.weight"]
    theirs = loaded(a, "BertForSequenceClassification")["bert.pooler.dense.weight"]
    # The weight of a source is 0.4 where the recipe says none.
    torch.testing.assert_close(model.pooler.dense.weight.detach(), base + 0.4 * (theirs - base))


def test_the_digest_knows_what_was_renamed(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    own = {"architectures": ["OursForCausalLM"]}
    a = rewritten(pair[0], tmp_path / "a", unchanged, **own)
    b = rewritten(pair[1], tmp_path / "b", prefixed("inner."), **own)
    plan = average(plan_of, {"a": a, "b": b})
    assert plan.sources[1].renamed["model.norm.weight"] == "inner.model.norm.weight"
    assert type(plan).from_dict(plan.to_dict()).digest == plan.digest


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_hidden_layers": 4}, r"makes 4 layers model.layers.\* and the weights have 2: put"),
        ({"num_hidden_layers": 1}, r"makes 1 layers model.layers.\* and the weights have 2: put"),
        ({"vocab_size": 130}, r"lm_head.weight is \[128, 32\] and would have to be \[130, 32"),
        ({"intermediate_size": 8}, "and 5 more; correct the sizes in the config.json of a"),
        ({"attention_bias": True}, "8 of its 29 parameters would be random"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "q_norm.weight"),
    ],
)
def test_a_config_of_another_model_is_refused(
    settings: dict[str, Any], match: str, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    models = {
        label: rewritten(model, tmp_path / label, unchanged, **settings)
        for label, model in zip("ab", pair, strict=True)
    }
    with pytest.raises(MergeError, match=match):
        average(plan_of, models)


def test_a_part_of_a_layer_that_the_model_does_not_have_is_refused(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def with_bias(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}

    models = {
        label: rewritten(model, tmp_path / label, with_bias)
        for label, model in zip("ab", pair, strict=True)
    }
    with pytest.raises(MergeError, match="1 of 22 tensors have no place in it and would be passed"):
        average(plan_of, models)


def test_a_head_for_another_task_is_said_and_kept(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def with_value(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "v_head.summary.weight": torch.ones(1, 32)}

    models = {
        label: rewritten(model, tmp_path / label, with_value)
        for label, model in zip("ab", pair, strict=True)
    }
    plan = average(plan_of, models)
    [said] = [note for note in plan.warnings if "no place" in note]
    assert "1 tensor(s) have no place in LlamaForCausalLM" in said
    assert "v_head.summary.weight" in said


def test_a_classifier_without_its_head_is_refused(plan_of: Make, tmp_path: Path) -> None:
    def headless(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n: t for n, t in tensors.items() if not n.startswith("classifier")}

    models = {
        label: rewritten(family("bert", tmp_path / f"{seed}", seed), tmp_path / label, headless)
        for seed, label in enumerate("ab")
    }
    with pytest.raises(MergeError, match="2 of its 73 parameters would be random"):
        average(plan_of, models)


def test_code_of_its_own_makes_a_note_of_what_cannot_be_known(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_ours.OursForCausalLM"}}
    models = {
        label: rewritten(model, tmp_path / label, unchanged, vocab_size=130, **own)
        for label, model in zip("ab", pair, strict=True)
    }
    plan = average(plan_of, models)
    assert any("whether the merge loads cannot be said" in note for note in plan.warnings)


def test_layers_are_counted_where_transformers_does_not_know_the_model(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    own = {"architectures": ["OursForCausalLM"], "num_hidden_layers": 4}
    models = {
        label: rewritten(model, tmp_path / label, unchanged, **own)
        for label, model in zip("ab", pair, strict=True)
    }
    with pytest.raises(MergeError, match="num_hidden_layers: 4, and the merge would have 2 layers"):
        average(plan_of, models)


def test_files_that_the_real_library_cannot_load_are_told(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    models = {
        label: rewritten(model, tmp_path / label, unchanged)
        for label, model in zip("ab", pair, strict=True)
    }
    config = json.loads((models["a"] / "config.json").read_text())
    del config["model_type"]
    (models["a"] / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((models["a"] / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {"type": "of another time"}
    (models["a"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = "\n".join(average(plan_of, models).warnings)
    assert "the config.json of a has no model_type, so transformers cannot load the merge" in told
    assert f" cannot read {models['a']}/tokenizer.json (" in told
    assert "), which the merge gets: take a newer version, or put the file there that was" in told


def test_renamed_inputs_are_matched_by_token_too(
    plan_of: Make, pair: tuple[Path, Path], tiny_llama: Make, tiny_tokenizer: Make, tmp_path: Path
) -> None:
    larger = tiny_llama(seed=3, vocabulary_size=140)
    wrapped = rewritten(larger, tmp_path / "b", prefixed("_orig_mod."))
    plan = average(plan_of, {"a": pair[0], "b": wrapped}, tokenizer={"source": "union"})
    merge(plan, tmp_path / "out")
    assert loaded(tmp_path / "out")["model.embed_tokens.weight"].shape == (140, 32)


@pytest.mark.parametrize("first", ["tied", "written"])
def test_a_tied_head_that_one_input_writes_once_more_is_left_out(
    first: str, plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    def with_head(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    tied = tiny_llama(tied=True)
    twin = tiny_llama(like=tied, seed=1, tied=True)
    inputs = {"tied": tied, "written": rewritten(twin, tmp_path / "written", with_head)}
    plan = average(plan_of, {first: inputs.pop(first), **inputs})
    assert "lm_head.weight" not in {task.name for task in plan.tasks}
    said = "lm_head.weight of written is left out: it is model.embed_tokens.weight once more"
    assert said in plan.warnings

    def with_another(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2}

    other = rewritten(twin, tmp_path / "other", with_another)
    with pytest.raises(MergeError, match="lm_head.weight is in other but not in tied"):
        average(plan_of, {"tied": tied, "other": other})


def test_tensors_without_values_are_refused_by_what_leaves_them(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def emptied(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: torch.empty(0) if "proj" in name else t for name, t in tensors.items()}

    a = rewritten(pair[0], tmp_path / "a", emptied)
    with pytest.raises(SourceError, match=r"14 of 21 tensors without any values.*ZeRO-3.*recover"):
        average(plan_of, {"a": a, "b": pair[1]})


@pytest.mark.parametrize("kind", ["Bert", "ViT"])
def test_a_model_that_was_trained_without_its_pooler_is_merged_and_said(
    kind: str, plan_of: Make, tmp_path: Path
) -> None:
    cls = getattr(transformers, f"{kind}Model")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    more = {"image_size": 8, "patch_size": 4} if kind == "ViT" else {"vocab_size": 32}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = cls.config_class(**sizes, **more, num_attention_heads=2)
        cls(config, add_pooling_layer=False).save_pretrained(tmp_path / name)
    plan = plan_of({"name": "linear"}, None, {n: tmp_path / n for n in "ab"})
    (said,) = [note for note in plan.warnings if "pooler" in note]
    assert f"no input has the pooler of {kind}Model, so the merge has none" in said
    out = merge(plan, tmp_path / "out")
    _, told = cls.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not any(told.values())
