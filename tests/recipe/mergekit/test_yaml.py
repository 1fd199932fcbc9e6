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

from mergeops.errors import ConfigError
from mergeops.progress import Progress
from mergeops.recipe.composition import compose
from mergeops.recipe.files import converted_text
from mergeops.recipe.mergekit.levels import glob
from mergeops.recipe.mergekit.read import read_mergekit
from mergeops.recipe.recipe import Recipe

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
    from mergeops import workshop

    recipe = compose(overrides, recipe_file=written(here, text))
    workshop.merge_only(recipe, here / out, Progress(quiet=True))
    return tensors_of(here / out)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def plan_tasks(here: Path, text: str, *overrides: str) -> dict[str, Any]:
    from mergeops.planning.planner import make_plan
    from mergeops.sources.resolution import resolve

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


@pytest.mark.parametrize("method", ["model_stock", "sce", "ram"])
def test_a_weight_where_all_models_weigh_alike_is_read_and_has_no_effect(
    here: Path, method: str
) -> None:
    def text(parameters: str) -> str:
        return f"""
        merge_method: {method}
        base_model: base
        models:
          - {{model: a{parameters}}}
          - {{model: b}}
        """

    assert native(here, text(", parameters: {weight: 0.3}")) == native(here, text(""))


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


def test_a_switch_in_every_slice_is_that_of_the_whole_merge(here: Path) -> None:
    text = """
    merge_method: ties
    base_model: base
    parameters: {weight: 1}
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
        parameters: {normalize: false}
      - sources: [{model: b, layer_range: [2, 4]}]
        parameters: {normalize: false}
    """
    assert native(here, text)["method"]["normalize"] is False
    # A slice without one has the method's default.
    one = text.replace("false", "true", 1).rpartition("        parameters")[0]
    assert native(here, one)["method"]["normalize"] is True


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
    from mergeops import workshop

    text = CONFIGS[name]
    merged(here, text)
    converted = converted_text(read_mergekit(here / "config.yml"), "config.yml")
    assert "merge_method" not in yaml.safe_load(converted)
    (here / "native.yml").write_text(converted)
    plan = workshop.merge_only(
        compose([], recipe_file=here / "native.yml"), here / "same", Progress(quiet=True)
    ).plan
    assert (
        plan.digest == yaml.safe_load((here / "out" / "mergeops.json").read_text())["plan_digest"]
    )
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


LISTED = "models: [{model: a}, {model: b}]\n"
ERRORS = [
    ("merge_method: tise\n" + LISTED, "line 1: merge_method is 'tise'; did you mean 'ties'"),
    (LISTED, "line 1: merge_method is missing"),
    ("merge_method: ties\n", "line 1: the merge has none of them; it needs one of models, sl"),
    (
        "merge_method: ties\nslices: []\n" + LISTED,
        "the merge has models and slices; it needs one of",
    ),
    ("merge_method: ties\ndtpye: float16\n" + LISTED, "line 2: dtpye is an unknown key; .*'dtype'"),
    ("merge_method: ties\ndtype: int64\n" + LISTED, "line 2: dtype is 'int64'; allowed: bfloat16"),
    ("merge_method: linear\nmodels: 3\n", "line 2: models is 3; it takes a list of models"),
    ("merge_method: linear\nmodels: []\n", "line 2: models is empty"),
    (
        "merge_method: linear\nmodels: [{modle: a}]\n",
        r"models\[0\].modle is an unknown key; .*model'",
    ),
    ("merge_method: linear\nmodels: [{parameters: {}}]\n", r"line 2: models\[0\] has no model"),
    (
        "merge_method: linear\nmodels:\n  - model: a\n    parameters: {wieght: 1}\n",
        r"line 4: models\[0\].parameters.wieght is an unknown key of linear; did you mean 'weight'",
    ),
    (
        "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: heavy}\n",
        r"line 4: models\[0\].parameters.weight is 'heavy'; it takes a number",
    ),
    ("merge_method: linear\n" + LISTED, r"models\[0\] has no parameters.weight; linear needs"),
    (
        "merge_method: linear\n" + LISTED + "parameters: {weight: [{filter: mlp, value: 1}]}\n",
        r"line 3: parameters.weight\[0\].value has no value where no filter matches",
    ),
    (
        "merge_method: linear\n" + LISTED + "parameters: {weight: [1, {value: 2}]}\n",
        "line 3: parameters.weight mixes numbers with {filter",
    ),
    (
        "merge_method: linear\n" + LISTED + "parameters: {weight: [{filter: mlp}]}\n",
        r"parameters.weight\[0\] has no value",
    ),
    ("merge_method: linear\n" + LISTED + "parameters: {weight: []}\n", "weight is an empty list"),
    ("merge_method: ties\n" + LISTED, "line 1: base_model is missing; ties needs it"),
    ("merge_method: slerp\nbase_model: a\n" + LISTED, "line 1: parameters.t is missing; slerp nee"),
    (
        "merge_method: slerp\nbase_model: a\nparameters: {t: 1.5}\n" + LISTED,
        "line 3: parameters.t is 1.5; allowed: from 0 to 1",
    ),
    (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b, parameters: {t: 1}}]\n",
        "line 3: .*t is given for one model, but t of slerp is one value for all; move it",
    ),
    (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1, normalize: 2}\n" + LISTED,
        "line 3: parameters.normalize is 2; it takes true or false",
    ),
    (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1, normalize: [0, 1]}\n"
        + LISTED,
        "line 3: parameters.normalize differs between tensors, but normalize of ties is one value",
    ),
    (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}]\n  parameters: {normalize: false}\n"
        "- sources: [{model: a, layer_range: [2, 4]}]\n  parameters: {normalize: true}\n",
        r"line 8: slices\[1\].parameters.normalize differs between tensors, but normalize of ties",
    ),
    (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}]\n  parameters: {normalize: false}\n"
        "- sources: [{model: a, layer_range: [2, 4]}]\n",
        r"line 6: slices\[0\].parameters.normalize differs between tensors",
    ),
    (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\n"
        "models: [{model: a, parameters: {normalize: true}}]\n",
        "line 4: .*normalize is given for one model, but normalize of ties is one value for all",
    ),
    (
        "merge_method: linear\nmodels: [{model: a}, {model: b}, {model: a}]\n",
        r"models\[2\] is the same model as models\[0\] in line 2; write it once, with the sum",
    ),
    (
        "merge_method: linear\nmerge_method: ties\n" + LISTED,
        "line 2: merge_method is given twice, first in line 1",
    ),
    (
        "merge_method: linear\nmodels: [{model: ./gone}]\n",
        "model is './gone', which is no directory here and no ORG/NAME",
    ),
    ("merge_method: linear\nmodels: [{model: a+b+c}]\n", "model is 'a.b.c'; only one"),
    ("merge_method: linear\nmodels: [{model: o/n@}]\n", "model is 'o/n@'; write PATH or PATH@REV"),
    (
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 1]}]}]\n",
        r"slices\[0\].sources\[0\].layer_range is \[2, 1\]; it takes the first layer and",
    ),
    (
        "merge_method: passthrough\nslices: [{sources: [{model: a}]}]\n",
        r"slices\[0\].sources\[0\] has no layer_range",
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources:\n"
        "  - {model: a, layer_range: [0, 1]}\n  - {model: b, layer_range: [0, 2]}\n",
        r"line 6: .* has 2 layers \[0, 2\], the first source of the slice 1 \[0, 1\]",
    ),
    (
        "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer_source: base\ntokenizer: {}\n",
        "tokenizer_source and tokenizer are both given",
    ),
    (
        "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer_source: b\n",
        "line 3: tokenizer_source is no model of the merge; it takes union, base or a model",
    ),
    (
        "merge_method: passthrough\nmodels: [{model: a}]\nchat_template: chatlm\n",
        "chat_template is 'chatlm'; allowed: auto, alpaca, chatml",
    ),
    (
        "merge_method: passthrough\nmodels: [{model: a}]\n"
        "tokenizer: {tokens: {x: {source: {kind: z}}}}",
        "tokens.x.source.kind is 'z'; allowed: zero, model_token",
    ),
    ("merge_method: passthrough\nmodels: [{model: a}]\n---\n" * 2, "2 of 2 documents have no name"),
    (
        "name: x\nmerge_method: passthrough\nmodels: [{model: y}]\n---\n"
        "name: y\nmerge_method: passthrough\nmodels: [{model: x}]\n---\n"
        "merge_method: passthrough\nmodels: [{model: x}]\n",
        "the merge 'x' is made from itself, over x, y",
    ),
    ("merge_method: [\n", "is not YAML"),
    (
        "merge_method: linear\nparamters:\n  weight: 1\n" + LISTED,
        "line 2: paramters is an unknown key; did you mean 'parameters'",
    ),
    ("merge_method: linear\nmodels: [a]\n", r"models\[0\] is 'a'; it takes a model with param"),
    ("merge_method: !!int ties\n" + LISTED, "line 1: merge_method cannot be read: invalid literal"),
    (
        "merge_method: !!python/name:os.x\n" + LISTED,
        "line 1: merge_method cannot be read: could not",
    ),
    ("merge_method: linear\n<<: 3\n" + LISTED, "line 1: cannot be read: .*merging"),
    ("merge_method: !!int ''\n" + LISTED, "line 1: merge_method cannot be read: string index"),
    ("merge_method: !!timestamp x\n" + LISTED, "merge_method cannot be read: 'NoneType' object"),
    (f"merge_method: 0x{'f' * 5000}\n" + LISTED, "merge_method cannot be read: Exceeds the limit"),
    ("merge_method: linear\nmodels: &m [*m]\n", "is nested too deeply or too large"),
    (
        "merge_method: linear\nparameters: {weight: .nan}\n" + LISTED,
        "parameters.weight is nan; it takes a number",
    ),
    ("models:\n" + " [\n" * 3000, "line 40: is nested too deeply or too large"),
    (
        f"merge_method: linear\nmodels:\n- {{model: {'x' * 300}}}\n",
        r"line 3: models\[0\].model is 'x{300}', which is no directory here and no ORG/NAME on",
    ),
    (
        "merge_method: linear\nmodels:\n- {model: ~nobody/x}\n",
        r"line 3: models\[0\].model is '~nobody/x', which is no directory here and no ORG/NAME on",
    ),
]


@pytest.mark.parametrize(("text", "match"), ERRORS, ids=range(len(ERRORS)))
def test_what_is_wrong_is_named_with_its_line(here: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        native(here, text)
    assert "\n" not in str(caught.value)
    assert "config.yml" in str(caught.value)


def test_slices_beyond_the_model_are_refused_with_its_layers(here: Path) -> None:
    text = FRANKEN.replace("[1, 4]", "[1, 40]")
    with pytest.raises(
        ConfigError, match=r"slices\[1\].sources\[0\] takes layers \[1, 40\] of b, .*has 4"
    ):
        plan_tasks(here, text)


def test_model_references(here: Path) -> None:
    text = """
    merge_method: linear
    parameters: {weight: 1}
    models:
      - model: org/name@v1+a
      - model: {model: {path: org/name, revision: v2}, lora: {path: org/lora}}
      - model: models:/merged/3
      - model: org/7b-chat
    """
    sources = native(here, text)["sources"]
    assert [(s["uri"], s.get("base")) for s in sources.values()] == [
        ("a", "hf://org/name@v1"),
        ("hf://org/lora", "hf://org/name@v2"),
        ("models:/merged/3", None),
        ("hf://org/7b-chat", None),
    ]
    assert list(sources) == ["a", "lora", "m_3", "m_7b_chat"]


def test_a_directory_with_plus_and_at_in_its_name_is_that_directory(
    here: Path, models: dict[str, Path]
) -> None:
    (here / "x+y@z").symlink_to(models["a"])
    text = "merge_method: passthrough\nmodels: [{model: x+y@z}]\n"
    assert native(here, text)["sources"]["x_y"]["uri"] == "x+y@z"


def test_numbers_without_a_dot_before_the_exponent_are_numbers(here: Path) -> None:
    text = "merge_method: nearswap\nbase_model: base\nmodels: [{model: a}]\nparameters: {t: 1e-5}\n"
    assert native(here, text)["method"]["t"] == 1e-5


def test_tokenizer_blocks_and_chat_templates(here: Path) -> None:
    text = """
    merge_method: linear
    base_model: base
    models: [{model: base}, {model: a}]
    parameters: {weight: 1}
    tokenizer:
      source: union
      pad_to_multiple_of: 8
      tokens:
        <x>: {source: a, force: true}
        <y>: {source: {kind: zero}}
        <z>: {source: {kind: model_token, model: base, token: th}}
        <w>: {source: {kind: model_token, model: a, token_id: 7}}
    chat_template: chatml
    """
    found = native(here, text)["tokenizer"]
    assert found["source"] == "union"
    assert found["pad_to_multiple_of"] == 8
    assert found["tokens"] == {
        "<x>": {"source": "a", "force": True},
        "<y>": {"source": "zero"},
        "<z>": {"source": {"source": "m_base", "token": "th"}},
        "<w>": {"source": {"source": "a", "token_id": 7}},
    }
    assert "<|im_start|>" in found["chat_template"]
    text = "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer: {}\n"
    assert native(here, text)["tokenizer"]["source"] == "union"


@pytest.mark.parametrize("name", ["alpaca", "chatml", "exaone", "llama3", "mistral"])
def test_named_chat_templates_render_in_the_order_of_the_messages(name: str) -> None:
    import jinja2

    from mergeops.recipe.mergekit.chat_templates import TEMPLATES

    text = (
        jinja2.Environment()
        .from_string(TEMPLATES[name])
        .render(
            messages=[
                {"role": "system", "content": "RULES"},
                {"role": "user", "content": "ASK"},
                {"role": "assistant", "content": "ANSWER"},
            ],
            bos_token="<s>",
            eos_token="</s>",
            add_generation_prompt=True,
        )
    )
    assert text.index("RULES") < text.index("ASK") < text.index("ANSWER")


ROLES = {
    "arcee_fusion": "models: [{model: a}]\nbase_model: base",
    "breadcrumbs": "models: [{model: a}, {model: b}]\nbase_model: base",
    "breadcrumbs_ties": "models: [{model: a}, {model: b}]\nbase_model: base",
    "dare_linear": "models: [{model: a}, {model: b}]\nbase_model: base",
    "dare_ties": "models: [{model: a}, {model: b}]\nbase_model: base",
    "della": "models: [{model: a}, {model: b}]\nbase_model: base",
    "della_linear": "models: [{model: a}, {model: b}]\nbase_model: base",
    "karcher": "models: [{model: a}, {model: b}]",
    "linear": "models: [{model: a}, {model: b}]",
    "model_stock": "models: [{model: base}, {model: a}, {model: b}]\nbase_model: base",
    "multislerp": "models: [{model: a}, {model: b}, {model: c}]",
    "nearswap": "models: [{model: a}]\nbase_model: base",
    "nuslerp": "models: [{model: a}, {model: b}]\nbase_model: base",
    "passthrough": "models: [{model: a}]",
    "ram": "models: [{model: a}, {model: b}]\nbase_model: base",
    "ramplus_tl": "models: [{model: a}, {model: b}]\nbase_model: base",
    "sce": "models: [{model: a}, {model: b}]\nbase_model: base",
    "slerp": "models: [{model: b}]\nbase_model: a",
    "task_arithmetic": "models: [{model: a}, {model: b}]\nbase_model: base",
    "ties": "models: [{model: a}, {model: b}]\nbase_model: base",
}


@pytest.mark.parametrize("method", ROLES)
def test_every_method_of_mergekit_runs(method: str, here: Path) -> None:
    from mergeops.recipe.mergekit.method_table import METHODS

    described = METHODS[method]
    every = {**described.per_model, **described.shared}
    given = [f"{name}: 0.5" for name, default in every.items() if default is None]
    text = f"merge_method: {method}\n{ROLES[method]}\nparameters: {{{', '.join(given)}}}\n"
    found = merged(here, text + "dtype: bfloat16\n")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_all_of_mergekits_methods_are_known() -> None:
    from mergeops.recipe.mergekit.method_table import METHODS

    assert METHODS.keys() == ROLES.keys()
    assert len(METHODS) == 20


def test_the_base_of_karcher_is_one_more_point_and_that_of_slerp_the_start(here: Path) -> None:
    text = "merge_method: karcher\nbase_model: base\nmodels: [{model: a}]\n"
    assert list(native(here, text)["sources"]) == ["a", "m_base"]
    text = "merge_method: slerp\nbase_model: base\nmodels: [{model: a}]\nparameters: {t: 0.5}\n"
    assert list(native(here, text)["sources"]) == ["m_base", "a"]


def test_rescale_is_the_papers_unless_mergekits_is_asked_for(here: Path) -> None:
    text = (
        f"merge_method: dare_ties\n{ROLES['dare_ties']}\nparameters: {{weight: 1, density: 0.5}}\n"
    )
    assert native(here, text)["method"]["rescale"] is True
    compat = native(here, text, compat=True)["method"]
    assert (compat["rescale"], compat["match_norm"]) == (True, True)


def test_a_lora_is_applied_to_its_model(
    here: Path, models: dict[str, Path], tiny_lora: Make
) -> None:
    adapter = tiny_lora(models["base"])
    (here / "lora").symlink_to(adapter)
    text = "merge_method: passthrough\nmodels: [{model: base+lora}]\ndtype: float32\n"
    found, base = merged(here, text), tensors_of(models["base"])
    low = tensors_of(adapter)
    prefix = "base_model.model." + Q.format(1).removesuffix(".weight")
    change = low[f"{prefix}.lora_B.weight"] @ low[f"{prefix}.lora_A.weight"] * (8 / 4)
    torch.testing.assert_close(found[Q.format(1)], base[Q.format(1)] + change)
