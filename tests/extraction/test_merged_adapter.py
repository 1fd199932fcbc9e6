"""Merges that are written as adapters, loaded by PEFT itself and held against the full merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

import mergeops
from mergeops.checkpoint import verify_checkpoint
from mergeops.cli.main import cli
from mergeops.errors import ConfigError, MergeError
from mergeops.extraction.low_rank import ROUNDING, factorize_sum, factorize_whole
from mergeops.recipe import Recipe

Make = Callable[..., Path]
AS_ADAPTER = "output.as=adapter"


@pytest.fixture(scope="module")
def base(tiny_llama: Make) -> Path:
    return tiny_llama()


@pytest.fixture(scope="module")
def pool(base: Path, tiny_lora: Make) -> dict[str, Path]:
    """Adapters of other ranks, scales and layers."""
    return {
        "a": tiny_lora(base, seed=1),
        "b": tiny_lora(base, seed=2, r=2, use_rslora=True, target_modules=["q_proj", "up_proj"]),
        "c": tiny_lora(base, seed=3, r=3, lora_alpha=1, rank_pattern={"down_proj": 1}),
    }


def recipe_of(base: Path | None, sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {name: {"uri": str(one)} for name, one in sources.items()}
    given = {"base": str(base)} if base else {}
    return {**given, "sources": found, "method": "linear", **more}


def logits(path: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.arange(40)[None]).logits
    return answer


def check(recipe: dict[str, Any], base: Path, to: Path) -> Any:
    """The adapter of a recipe answers as its full merge does, and not as its base."""
    made = mergeops.merge(recipe, to / "adapter", overrides=[AS_ADAPTER])
    mergeops.merge(recipe, to / "model")
    wanted = logits(to / "model")
    largest = float(wanted.abs().max())
    assert float((logits(base, to / "adapter") - wanted).abs().max()) <= 1e-5 * largest
    assert float((logits(base) - wanted).abs().max()) > 1e-3 * largest
    assert verify_checkpoint(to / "adapter") == []
    return made.to_dict()["adapter"]


def ranks(made: Any) -> dict[str, int]:
    return {m["module"].partition("layers.")[2]: m["rank"] for m in made["matrices"]}


def test_a_mean_of_loras_has_their_factors_side_by_side(
    base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(base, pool)
    recipe["sources"]["b"]["weight"] = 3.0
    made = check(recipe, base, tmp_path)
    found = ranks(made)
    assert found["0.self_attn.q_proj"] == 4 + 2 + 3
    assert found["1.mlp.up_proj"] == 2 and found["1.mlp.down_proj"] == 4 + 1
    assert made["saved"] == [] and made["relative_error"] < 1e-6
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    # The product is the weighted sum of the products: alpha / r, rsLoRA's alpha / sqrt(r).
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight".format
    scales = {"a": 8 / 4 / 5, "b": 3 * 8 / 2**0.5 / 5, "c": 1 / 3 / 5}
    total: Any = 0.0
    for name, scale in scales.items():
        own = load_file(pool[name] / "adapter_model.safetensors")
        total += scale * (own[key("B")].double() @ own[key("A")].double())
    merged = load_file(tmp_path / "adapter/adapter_model.safetensors")
    product = merged[key("B")].double() @ merged[key("A")].double()
    assert torch.allclose(product, total, rtol=0, atol=1e-6 * float(total.abs().max()))


def test_the_same_call_again_finds_it_and_another_is_refused(
    base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    recipe, out = recipe_of(base, pool), tmp_path / "out"
    first = mergeops.merge(recipe, out, overrides=[AS_ADAPTER])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = mergeops.merge(recipe, out, overrides=[AS_ADAPTER])
    assert again.was_there and not first.was_there
    assert again.to_dict()["adapter"] == first.to_dict()["adapter"]
    # The full weights are another thing.
    with pytest.raises(MergeError, match="holds another merge"):
        mergeops.merge(recipe, out)
    with pytest.raises(MergeError, match="holds something else already"):
        mergeops.merge(recipe, out, overrides=[AS_ADAPTER, "sources.a.weight=2.0"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_rules_and_negative_weights_count_tensor_by_tensor(
    base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    rules = [{"match": "*.layers.1.*", "weight": {"a": -0.5, "b": 0.0, "c": 2.0}}]
    method = {"name": "task_arithmetic", "scale": 1.5}
    made = check(recipe_of(base, pool, method=method, rules=rules), base, tmp_path)
    # A weight of zero takes no directions.
    assert "1.mlp.up_proj" not in ranks(made) and ranks(made)["1.self_attn.q_proj"] == 4 + 3


def test_an_adapter_given_twice_takes_its_rank_once(
    base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    # The same weights under another name are another source to a recipe.
    config = json.loads((pool["a"] / "adapter_config.json").read_text())
    again = Path(shutil.copytree(pool["a"], tmp_path / "again"))
    (again / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 4}))
    twice = {"a": pool["a"], "again": again}
    method = {"name": "task_arithmetic", "weight": 0.7}
    assert set(ranks(check(recipe_of(base, twice, method=method), base, tmp_path)).values()) == {4}


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("model_stock", {}), ("iso_c", {"compute": "float64"})],
)
def test_another_method_is_an_adapter_where_its_result_is_low_rank(
    method: str, dtype: dict[str, str], base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    made = check(recipe_of(base, pool, method=method, dtype=dtype), base, tmp_path)
    assert ranks(made)["0.self_attn.q_proj"] == 4 + 2 + 3
    assert "0.self_attn.k_proj" not in ranks(made) and made["saved"] == []


def test_what_lora_cannot_change_is_saved_whole(
    base: Path, pool: dict[str, Path], tiny_lora: Make, tmp_path: Path
) -> None:
    whole = tiny_lora(base, seed=4, modules_to_save=["lm_head"])
    made = check(recipe_of(base, {"a": pool["a"], "d": whole}), base, tmp_path)
    assert made["saved"] == ["lm_head"]


def test_conv1d_of_gpt2_is_turned(tiny_lora: Make, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    modules = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    sources = {str(n): tiny_lora(tmp_path / "base", seed=n, **modules) for n in range(2)}
    renamed = {f"s{name}": path for name, path in sources.items()}
    made = check(recipe_of(tmp_path / "base", renamed), tmp_path / "base", tmp_path)
    assert {m["rank"] for m in made["matrices"]} == {8}
    # A bias that changed has no place beside LoRA.
    biased = renamed | {"b": tiny_lora(tmp_path / "base", bias="lora_only", **modules)}
    with pytest.raises(MergeError, match=r"beside LoRA; write the full weights \(output.as=model"):
        mergeops.merge(recipe_of(tmp_path / "base", biased), tmp_path / "x", overrides=[AS_ADAPTER])


def test_a_merge_of_full_rank_is_refused_with_its_rank(
    base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(base, pool, method={"name": "ties", "density": 0.2})
    with pytest.raises(MergeError, match=r"ties of these sources is not of low rank: .* rank \d\d"):
        mergeops.merge(recipe, tmp_path / "out", overrides=[AS_ADAPTER])
    assert not (tmp_path / "out").exists()
    # Without a base in the formula, weights that add up to something else change all of it.
    summed = recipe_of(base, pool, method={"name": "linear", "normalize": False})
    with pytest.raises(MergeError, match="mergeops extract BASE MERGE OUT --rank N"):
        mergeops.merge(summed, tmp_path / "out", overrides=[AS_ADAPTER])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": None}, "output.as is adapter, but base is missing; name the full model"),
        ({"base_adapter": "a"}, "output.as is adapter, but base is an adapter itself"),
        ({"output": {"as": "lora"}}, "output.as is 'lora'; allowed: model, adapter"),
        ({"output": {"as_": "adapter"}}, "unknown key output.as_; did you mean 'as'"),
        ({"executor": {"name": "local", "workers": 2}}, "leave one of them out"),
        (
            {"merges": {"m": {"method": "linear", "sources": {}, "output": {"as": "adapter"}}}},
            "merges.m: output.as is adapter, and what is merged again is a model",
        ),
    ],
)
def test_what_names_no_adapter_is_refused(
    changes: dict[str, Any], message: str, base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(base, pool) | {"output": {"as": "adapter"}} | changes
    if recipe.get("base_adapter"):
        recipe["base_adapter"] = str(pool["a"])
    for source in recipe["sources"].values():
        source["base"] = str(base)
    with pytest.raises(ConfigError) as caught:
        mergeops.merge(recipe, tmp_path / "out")
    assert message in str(caught.value)


def test_merge_writes_adapters_and_plan_is_for_full_weights(
    base: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(base, pool)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), AS_ADAPTER]
    planned = CliRunner().invoke(cli, [*words, "--plan"])
    assert "--plan says what full weights take; leave one of them out" in str(planned.exception)
    made = CliRunner().invoke(cli, words)
    assert "as an adapter of its base: 6 matrices of rank 2 to 9" in made.stdout


def test_a_recipe_without_a_choice_is_named_as_before() -> None:
    assert "as" not in Recipe.from_dict({"method": "linear"}).to_dict()["output"]
    chosen = Recipe.from_dict({"method": "linear", "output": {"as": "adapter"}})
    assert Recipe.from_dict(chosen.to_dict()) == chosen
    assert chosen.weights_dict() == Recipe.from_dict({"method": "linear"}).weights_dict()


def test_directions_that_rounding_made_are_left_out() -> None:
    torch.manual_seed(0)
    b, a = torch.randn(30, 2).double(), torch.randn(2, 20).double()
    weight = 1e3 * torch.randn(30, 20).double()
    rounding = ROUNDING["float64"] * float(weight.norm())
    assert factorize_whole((weight + b @ a) - weight, rounding).rank == 2
    assert factorize_whole(torch.eye(4).double(), 1.5).rank == 4
    product = factorize_sum([(b, a), (b, -0.5 * a)])
    assert product is not None and product.rank == 2
    assert torch.allclose(product.b.double() @ product.a.double(), 0.5 * (b @ a), atol=1e-5)
    assert factorize_sum([(b, 0 * a)]) is None
