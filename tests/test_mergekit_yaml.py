"""mergekit's YAML: what it becomes, and that the merge is what mergekit's own formulas give."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergeops.compose import compose
from mergeops.errors import ConfigError, MergeError
from mergeops.mergekit_yaml import read_mergekit
from mergeops.mergekit_yaml.settings import glob
from mergeops.progress import Progress
from mergeops.recipe import Recipe

Make = Callable[..., Any]
Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tiny_llama: Make) -> dict[str, Path]:
    base = tiny_llama(layers=4)
    return {"base": base} | {n: tiny_llama(like=base, seed=i) for i, n in enumerate("abc", 1)}


@pytest.fixture
def here(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which base, a, b and c are models."""
    for name, path in models.items():
        (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path, text: str, name: str = "config.yml") -> Path:
    path = here / name
    path.write_text(textwrap.dedent(text))
    return path


def native(here: Path, text: str, **options: Any) -> dict[str, Any]:
    recipe = dict(read_mergekit(written(here, text), **options).recipe)
    Recipe.from_dict(recipe)
    return recipe


def merged(here: Path, text: str, *overrides: str, out: str = "out") -> dict[str, torch.Tensor]:
    from mergeops import pipeline

    recipe = compose(overrides, recipe_file=written(here, text))
    pipeline.merge_only(recipe, here / out, Progress(quiet=True))
    return tensors_of(here / out)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def plan_tasks(here: Path, text: str, *overrides: str) -> dict[str, Any]:
    from mergeops.plan import make_plan
    from mergeops.sources import resolve

    recipe = compose(overrides, recipe_file=written(here, text))
    found = resolve(recipe, cache_dir=here / "cache")
    plan = make_plan(recipe, found.base, found.sources)
    return {task.name: task for shard in plan.shards for task in shard.tensors}


def test_a_ties_config_becomes_a_recipe_with_mergekits_defaults(here: Path) -> None:
    recipe = native(
        here,
        """
        models:
          - model: base
          - model: a
            parameters: {density: 0.5, weight: 0.3}
          - model: b
            parameters: {weight: [0, 0.3, 0.7, 1]}
        merge_method: ties
        base_model: base
        parameters: {normalize: false, int8_mask: true, lambda: 1.5}
        dtype: float16
        """,
    )
    assert recipe["base"] == "base"
    assert recipe["sources"] == {
        "a": {"uri": "a", "weight": 0.3, "density": 0.5},
        "b": {"uri": "b", "weight": [0.0, 0.3, 0.7, 1.0]},
    }
    assert recipe["method"] == {
        "name": "ties",
        "density": 1.0,
        "normalize": False,
        "rescale": False,
        "scale": 1.5,
    }
    assert recipe["dtype"] == {"compute": "float32", "save": "float16"}
    assert "rules" not in recipe


def test_out_dtype_decides_what_is_saved(here: Path) -> None:
    text = "models: [{model: a}]\nmerge_method: passthrough\ndtype: torch.bfloat16\n"
    assert native(here, text)["dtype"]["save"] == "bfloat16"
    assert native(here, text + "out_dtype: float32\n")["dtype"]["save"] == "float32"


def test_a_linear_merge_is_the_weighted_mean(here: Path, models: dict[str, Path]) -> None:
    found = merged(
        here,
        """
        models:
          - {model: a, parameters: {weight: 1.0}}
          - {model: ./b, parameters: {weight: 3.0}}
        merge_method: linear
        dtype: float32
        """,
    )
    a, b = tensors_of(models["a"]), tensors_of(models["b"])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.25 * a[name] + 0.75 * b[name])


PRECEDENCE = """
models:
  - model: a
    parameters:
      weight:
        - {filter: self_attn, value: 1}
        - {filter: mlp.up, value: [2, 5]}
  - model: b
    parameters: {weight: 6}
merge_method: linear
parameters:
  weight:
    - {filter: mlp, value: 3}
    - value: 4
"""


def test_the_models_own_filter_wins_over_the_configs_and_a_miss_falls_through(here: Path) -> None:
    tasks = plan_tasks(here, PRECEDENCE)
    weights = {name: task.per_source["weight"] for name, task in tasks.items()}
    assert weights[Q.format(1)] == (1.0, 6.0)
    assert [weights[UP.format(i)][0] for i in range(4)] == [2.0, 3.0, 4.0, 5.0]
    assert weights["model.layers.2.mlp.gate_proj.weight"] == (3.0, 6.0)
    assert weights["model.norm.weight"] == (4.0, 6.0)


SLERP = """
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
merge_method: slerp
base_model: b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""


def test_gradient_slerp_has_rules_and_starts_at_the_base_model(here: Path) -> None:
    recipe = native(here, SLERP)
    assert recipe["base"] is None
    assert [part["source"] for part in recipe["slices"][0]["sources"]] == ["b", "a"]
    assert recipe["rules"] == [
        {"match": "*self_attn*", "t": [0.0, 0.5, 0.3, 0.7, 1.0]},
        {"match": "*mlp*", "t": [1.0, 0.5, 0.7, 0.3, 0.0]},
        {"match": "*", "t": 0.5},
    ]
    tasks = plan_tasks(here, SLERP)
    at = [tasks[Q.format(i)].shared["t"] for i in range(4)]
    # Layers sit at 0, 1/3, 2/3 and 1 of four steps.
    assert at == pytest.approx([0.0, 0.5 * 2 / 3 + 0.3 / 3, 0.3 / 3 + 0.7 * 2 / 3, 1.0])
    assert tasks["lm_head.weight"].shared["t"] == 0.5


def test_a_gradient_gives_the_tensors_after_the_layers_its_last_value(here: Path) -> None:
    text = """
    models: [{model: a}, {model: b}]
    merge_method: slerp
    base_model: a
    parameters: {t: [0, 1]}
    """
    tasks = plan_tasks(here, text)
    assert tasks["model.embed_tokens.weight"].shared["t"] == 0.0
    assert tasks["lm_head.weight"].shared["t"] == 1.0
    tasks = plan_tasks(here, text, "compat=mergekit")
    assert tasks["lm_head.weight"].shared["t"] == 0.0
    assert tasks["model.norm.weight"].shared["t"] == 0.0
    assert tasks[UP.format(3)].shared["t"] == 1.0


FRANKEN = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
merge_method: passthrough
dtype: float32
"""


def test_a_frankenmerge_stacks_layers_and_counts_them(here: Path, models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = merged(here, FRANKEN)
    a, b = tensors_of(models["a"]), tensors_of(models["b"])
    for k, (source, i) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        assert found[Q.format(k)].equal(source[Q.format(i)])
    assert found["model.embed_tokens.weight"].equal(a["model.embed_tokens.weight"])
    assert found["model.norm.weight"].equal(b["model.norm.weight"])
    assert found["lm_head.weight"].equal(b["lm_head.weight"])
    model = AutoModelForCausalLM.from_pretrained(here / "out")
    assert model.config.num_hidden_layers == 6
    tokens = AutoTokenizer.from_pretrained(here / "out")("one two", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3).shape[1] == tokens["input_ids"].shape[1] + 3


def test_two_layers_of_one_model_are_averaged(here: Path, models: dict[str, Path]) -> None:
    found = merged(
        here,
        """
        slices:
          - sources: [{model: a, layer_range: [0, 1]}]
          - sources:
              - {model: a, layer_range: [1, 2], parameters: {weight: 1}}
              - {model: a, layer_range: [2, 3], parameters: {weight: 3}}
        merge_method: linear
        parameters: {weight: 1}
        """,
    )
    a = tensors_of(models["a"])
    expected = 0.25 * a[UP.format(1)] + 0.75 * a[UP.format(2)]
    torch.testing.assert_close(found[UP.format(1)], expected)
    assert UP.format(2) not in found


def test_slices_of_task_vectors_take_the_same_layers_of_the_base(
    here: Path, models: dict[str, Path]
) -> None:
    text = """
    slices:
      - sources:
          - {model: base, layer_range: [2, 4]}
          - {model: a, layer_range: [2, 4], parameters: {weight: 0.5}}
      - sources:
          - {model: a, layer_range: [0, 1], parameters: {weight: [2]}}
    merge_method: task_arithmetic
    base_model: base
    dtype: float32
    """
    found = merged(here, text)
    base, a = tensors_of(models["base"]), tensors_of(models["a"])
    for k, i, weight in [(0, 2, 0.5), (1, 3, 0.5), (2, 0, 2.0)]:
        ours, theirs = base[Q.format(i)], a[Q.format(i)]
        torch.testing.assert_close(found[Q.format(k)], ours + weight * (theirs - ours))


def test_slice_parameters_win_over_the_configs(here: Path) -> None:
    tasks = plan_tasks(
        here,
        """
        slices:
          - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
            parameters: {t: [{filter: mlp, value: [0.1, 0.2]}]}
          - sources: [{model: a, layer_range: [2, 3]}, {model: b, layer_range: [2, 3]}]
            parameters: {t: 0.9}
        merge_method: slerp
        base_model: a
        parameters: {t: 0.4}
        """,
    )
    assert [tasks[UP.format(i)].shared["t"] for i in range(3)] == [0.1, 0.2, 0.9]
    assert [tasks[Q.format(i)].shared["t"] for i in range(3)] == [0.4, 0.4, 0.9]
    # Before and after the layers: as the first and the last slice.
    assert tasks["model.embed_tokens.weight"].shared["t"] == 0.4
    assert tasks["lm_head.weight"].shared["t"] == 0.9


def test_a_later_document_merges_an_earlier_one(here: Path, models: dict[str, Path]) -> None:
    text = """
    name: first
    models:
      - {model: a, parameters: {weight: 1}}
      - {model: b, parameters: {weight: 1}}
    merge_method: linear
    dtype: float32
    ---
    models:
      - {model: first, parameters: {weight: 1}}
      - {model: c, parameters: {weight: 3}}
    merge_method: linear
    dtype: float32
    """
    found = merged(here, text)
    a, b, c = (tensors_of(models[n]) for n in "abc")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.125 * a[name] + 0.125 * b[name] + 0.75 * c[name])
    kept = list((here / "mergeops-work" / "merges").iterdir())
    assert len(kept) == 1
    before = (kept[0] / "mergeops.json").stat().st_mtime_ns
    merged(here, text, out="again")
    assert (kept[0] / "mergeops.json").stat().st_mtime_ns == before
    assert native(here, text)["sources"]["first"]["uri"] == "merge:first"


CONFIGS = {"precedence": PRECEDENCE, "slerp": SLERP, "franken": FRANKEN}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_converted_recipe_gives_the_same_bytes(name: str, here: Path) -> None:
    from mergeops import pipeline

    text = CONFIGS[name]
    merged(here, text)
    converted = read_mergekit(here / "config.yml").yaml("config.yml")
    assert "merge_method" not in yaml.safe_load(converted)
    (here / "native.yml").write_text(converted)
    plan = pipeline.merge_only(
        compose([], recipe_file=here / "native.yml"), here / "same", Progress(quiet=True)
    )
    assert plan.digest == yaml.safe_load((here / "out" / "mergeops.json").read_text())["plan_digest"]
    for file in (here / "out").iterdir():
        assert file.read_bytes() == (here / "same" / file.name).read_bytes(), file.name


def test_the_run_command_takes_the_file_with_recipe_mergekit(here: Path) -> None:
    path = written(here, FRANKEN)
    recipe = compose(["recipe=mergekit", f"file={path}", "seed=4"])
    assert recipe.method.name == "passthrough"
    assert recipe.seed == 4
    assert len(recipe.slices) == 2
    with pytest.raises(ConfigError, match="recipe=mergekit needs file=config.yml"):
        compose(["recipe=mergekit"])
    with pytest.raises(ConfigError, match="is read with recipe=mergekit only"):
        compose([f"file={path}"])


def test_filters_are_parts_of_names_never_patterns() -> None:
    assert glob("a[0]*") == "*a[[]0][*]*"
    assert glob(None) == "*"
