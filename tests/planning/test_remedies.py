"""What a recipe may allow is counted and named, and never makes something worse."""

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
from support.tiny_models import ARCHITECTURES

from mergeops.architectures import read_fit
from mergeops.checkpoint import open_checkpoint
from mergeops.engine.execute import merge
from mergeops.errors import MergeError

Make = Callable[..., Any]


def rewritten(model: Path, out: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    shutil.copytree(model, out)
    content = {n: t.clone() for n, t in change(load_file(out / "model.safetensors")).items()}
    save_file(content, out / "model.safetensors", metadata={"format": "pt"})
    return out


def own_kind(model: Path) -> Path:
    """As a model that transformers does not know."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["Ours"]}))
    return model


def mixtral(folder: Path, seed: int, **spelling: bool) -> Path:
    cls, settings = ARCHITECTURES["mixtral"]
    torch.manual_seed(seed)
    made = getattr(transformers, cls)
    made(made.config_class(**settings)).save_pretrained(folder, **spelling)
    return folder


def test_tensors_of_some_inputs_only_are_counted_and_named(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama()

    def with_more(tensors: dict[str, Any]) -> dict[str, Any]:
        layers = {f"model.layers.{i}.gate.weight": torch.ones(2) for i in range(2)}
        return {**tensors, **layers, "extra": torch.ones(3)}

    a = own_kind(rewritten(tiny_llama(like=base, seed=1), tmp_path / "a", with_more))
    b = own_kind(rewritten(tiny_llama(like=base, seed=2), tmp_path / "b", dict))
    plan = plan_of({"name": "linear"}, None, {"a": a, "b": b}, missing="leave_out")
    [said] = [note for note in plan.warnings if note.startswith("missing=leave_out")]
    assert said.startswith(
        "missing=leave_out: 3 of 24 tensors come from a only (in layers 0, 1), e.g. "
    )
    assert "model.layers.0.gate.weight" in said


def test_inputs_that_have_hardly_anything_in_common_are_not_put_side_by_side(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama()

    def other(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n if n == "lm_head.weight" else f"{n}.x": t for n, t in tensors.items()}

    a = own_kind(rewritten(base, tmp_path / "a", dict))
    b = own_kind(rewritten(tiny_llama(like=base, seed=1), tmp_path / "b", other))
    with pytest.raises(MergeError, match="only 1 of 21 tensors are in all of a, b: .* only in a; "):
        plan_of({"name": "linear"}, None, {"a": a, "b": b}, missing="leave_out")
    with pytest.raises(MergeError, match="only 1 names are in both: save both with the same class"):
        plan_of({"name": "linear"}, None, {"a": a, "b": b})


def test_names_of_two_spellings_are_no_tensors_that_one_input_lacks(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    def joined(tensors: dict[str, Any]) -> dict[str, Any]:
        layer = "model.layers.0.mlp"
        halves = [tensors.pop(f"{layer}.{half}_proj.weight") for half in ("gate", "up")]
        return {**tensors, f"{layer}.gate_up_proj.weight": torch.cat(halves)}

    base = tiny_llama()
    sources = {"a": base, "b": rewritten(tiny_llama(like=base, seed=1), tmp_path / "b", joined)}
    told = "lacks 2 .* and has 1 .*; where these stand for each other, save both with the same cla"
    with pytest.raises(MergeError, match=told):
        plan_of({"name": "linear"}, None, sources)
    with pytest.raises(MergeError, match="1 of 22 tensors have no place in it"):
        plan_of({"name": "linear"}, None, sources, missing="leave_out")


def test_layers_that_predict_further_ahead_are_taken_from_the_input_that_has_them(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama()
    ahead = "model.layers.2.eh_proj.weight"
    published = rewritten(base, tmp_path / "base", lambda t: {**t, ahead: torch.ones(32, 64)})
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    sources = {"a": tiny_llama(like=base, seed=1)}
    method = {"name": "task_arithmetic"}
    with pytest.raises(MergeError, match="a has fewer layers than base; .* missing=leave_out to"):
        plan_of(method, published, sources)
    plan = plan_of(method, published, sources, missing="leave_out")
    assert f"1 of 22 tensors come from base only (in layers 2), e.g. {ahead}" in plan.warnings[-1]
    merge(plan, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")[ahead].equal(torch.ones(32, 64))


@pytest.mark.parametrize("settings", [{}, {"missing": "leave_out"}])
def test_experts_one_by_one_beside_experts_in_one_need_a_model_that_is_known(
    settings: dict[str, str], plan_of: Make, tmp_path: Path
) -> None:
    old = own_kind(mixtral(tmp_path / "old", 1))
    new = own_kind(mixtral(tmp_path / "new", 2, save_original_format=False))
    with pytest.raises(MergeError, match="old has a tensor for each expert .* new has the experts"):
        plan_of({"name": "linear"}, None, {"old": old, "new": new}, **settings)


def test_a_parameter_that_two_tensors_give_is_seen(tmp_path: Path) -> None:
    old = mixtral(tmp_path / "old", 1)
    new = mixtral(tmp_path / "new", 2, save_original_format=False)
    shapes = {
        name: stored.shape
        for model in (old, new)
        for name, stored in open_checkpoint(model).tensors.items()
    }
    fit = read_fit(json.loads((old / "config.json").read_text()), shapes)
    assert fit is not None
    assert not fit.is_whole
    assert "model.layers.0.mlp.experts.down_proj" in fit.doubled
    assert "model.layers.0.mlp.gate.weight" in fit.doubled


def test_a_part_of_one_input_that_the_model_has_no_place_for_is_refused_whatever_is_allowed(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    def with_bias(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "model.layers.1.self_attn.q_proj.bias": torch.ones(32)}

    base = tiny_llama()
    b = rewritten(tiny_llama(like=base, seed=1), tmp_path / "b", with_bias)
    with pytest.raises(MergeError, match="1 of 22 tensors have no place in it"):
        plan_of({"name": "linear"}, None, {"a": base, "b": b}, missing="leave_out")


def doubled_head(model: Path, out: Path, factor: float) -> Path:
    """A tied model that has its head in the file, ``factor`` times the embeddings."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * factor}

    return rewritten(model, out, change)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_head_that_is_written_though_tied_is_untied_where_it_differs(
    factor: float, plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama(tied=True)
    models = {
        "a": doubled_head(base, tmp_path / "a", 1.0),
        "b": doubled_head(tiny_llama(like=base, seed=1), tmp_path / "b", factor),
    }
    plan = plan_of({"name": "linear"}, None, models)
    merge(plan, tmp_path / "out")
    tied = json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert tied is (factor == 1.0)
    assert any("are written and differ" in n for n in plan.warnings) is (factor != 1.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(model.lm_head.weight, written["lm_head.weight"])


def test_a_method_that_draws_parts_a_head_that_is_written_though_tied(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama(tied=True)
    models = {
        name: doubled_head(model, tmp_path / name, 1.0)
        for name, model in {"base": base, "a": tiny_llama(like=base, seed=1)}.items()
    }
    plan = plan_of({"name": "dare_linear"}, models["base"], {"a": models["a"]})
    assert plan.config["tie_word_embeddings"] is False
