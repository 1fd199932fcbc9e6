"""What a mergekit YAML's models get wrong is found in their headers, and named by line and key."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops import workshop
from mergeops.errors import ConfigError, MergeError, MergeopsError, SourceError
from mergeops.progress import Progress
from mergeops.recipe.composition import compose

Make = Callable[..., Any]
Q = "model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tiny_llama: Make, tiny_lora: Make) -> dict[str, Path]:
    base = tiny_llama(layers=4)
    fine = {n: tiny_llama(like=base, seed=i) for i, n in enumerate("ab", 1)}
    return {"base": base, "lora": tiny_lora(base), **fine}


@pytest.fixture
def here(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which base, a and b are models and lora is an adapter."""
    for name, path in models.items():
        (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(text: str, *overrides: str, out: str = "out") -> dict[str, torch.Tensor]:
    Path("config.yml").write_text(textwrap.dedent(text))
    recipe = compose(overrides, recipe_file=Path("config.yml"))
    workshop.merge_only(recipe, Path(out), Progress(quiet=True))
    return tensors_of(Path(out))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def refused(text: str, error: type[MergeopsError] = MergeError) -> str:
    """The message of the error that the YAML ends in, after which nothing is written."""
    with pytest.raises(error) as caught:
        merge(text)
    assert not Path("out").exists()
    assert not Path("mergeops-work/merges").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(name: str, source: Path, tensors: dict[str, Any], **config: Any) -> None:
    """A copy of a model with other tensors (None: without) and another config."""
    shutil.copytree(source, name)
    file = Path(name, "model.safetensors")
    content = {k: v for k, v in (load_file(file) | tensors).items() if v is not None}
    save_file(content, file, metadata={"format": "pt"})
    settings = json.loads(Path(name, "config.json").read_text())
    Path(name, "config.json").write_text(json.dumps(settings | config))


LINEAR = """
merge_method: linear
models:
  - model: a
  - model: {other}
parameters: {{weight: 1}}
"""
STACKED = """
merge_method: passthrough
slices:
  - sources:
      - model: a
        layer_range: [0, 2]
  - sources:
      - model: b
        layer_range: [1, 9]
"""


def test_a_slice_beyond_the_last_layer_is_named_with_its_line(here: Path) -> None:
    assert refused(STACKED, ConfigError) == (
        "config.yml, line 9, slices[1].sources[0].layer_range: slices[1].sources[0] takes layers "
        "[1, 9] of b, whose model.layers.* has 4 layers; allowed: up to [0, 4]"
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters:\n  t:\n"
            "    - filter: self_atn\n      value: 0.1\n    - value: 0.5\n",
            "line 6, parameters.t[0].filter",
        ),
        (
            "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight:\n"
            "    - filter: self_atn\n      value: 0.1\n    - value: 0.5\n"
            "- model: b\n  parameters: {weight: 1}\n",
            "line 6, models[0].parameters.weight[0].filter",
        ),
    ],
)
def test_a_filter_that_takes_no_tensor_is_named_with_its_line(
    here: Path, text: str, place: str
) -> None:
    assert refused(text, ConfigError) == (
        f"config.yml, {place}: is 'self_atn', which is in no tensor's name; names look like "
        "model.layers.1.self_attn.v_proj.weight"
    )


def test_a_filter_for_the_output_head_of_a_tied_model_is_no_typo(
    here: Path, tiny_llama: Make
) -> None:
    tied = tiny_llama(tied=True, path=Path("tied"))
    tiny_llama(like=tied, seed=1, path=Path("tied_b"))
    found = merge(
        "merge_method: slerp\nbase_model: tied\nmodels: [{model: tied_b}]\nparameters:\n  t:\n"
        "    - {filter: lm_head, value: 0.1}\n    - value: 0.5\n"
    )
    assert "lm_head.weight" not in found


def test_tensors_that_one_model_lacks_are_named_with_its_line(
    here: Path, models: dict[str, Path]
) -> None:
    changed("less", models["b"], {Q.format(0): None, Q.format(3): None})
    assert refused(LINEAR.format(other="less")) == (
        "config.yml, line 5, models[1].model: less lacks 2 tensor(s) that a has "
        f"({Q.format(0)}, {Q.format(3)}); set missing=leave_out to merge such tensors from the "
        "inputs that have them"
    )


def test_models_of_different_depth_are_told_of_slices(here: Path, tiny_llama: Make) -> None:
    tiny_llama(layers=2, path=Path("short"))
    message = refused(LINEAR.format(other="short"))
    assert message.startswith(
        "config.yml, line 5, models[1].model: a and short have different architectures: "
        "num_hidden_layers is 4 in a and 2 in short"
    )


def test_shapes_that_differ_are_counted_and_shown(here: Path, models: dict[str, Path]) -> None:
    wide = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(96, 32) for i in range(4)}
    changed("wide", models["b"], wide)
    assert refused(LINEAR.format(other="wide")) == (
        "config.yml, line 5, models[1].model: 4 tensors have other shapes: "
        "model.layers.0.mlp.up_proj.weight is [64, 32] in a and [96, 32] in wide; "
        "model.layers.1.mlp.up_proj.weight is [64, 32] in a and [96, 32] in wide; "
        "model.layers.2.mlp.up_proj.weight is [64, 32] in a and [96, 32] in wide and 1 more; "
        "models of different sizes have no entries in common to merge: choose fine-tunes of one "
        "model"
    )


def test_vocabularies_of_two_sizes_are_a_choice_of_three(here: Path, tiny_llama: Make) -> None:
    tiny_llama(layers=4, vocabulary_size=136, path=Path("large"))
    message = refused(LINEAR.format(other="large"))
    assert message.startswith("config.yml, line 5, models[1].model: vocabulary sizes differ: ")
    assert "128 rows in a and 136 in large" in message
    assert "tokenizer.source=union (all of them); in mergekit's YAML, tokenizer_source" in message


def test_experts_kept_in_two_ways_are_told_apart(here: Path, models: dict[str, Path]) -> None:
    single = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": torch.zeros(8, 32) for i in (0, 1)}
    fused = {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 16, 32)}
    changed("single", models["a"], single)
    changed("fused", models["b"], fused)
    message = refused(LINEAR.format(other="fused").replace("model: a", "model: single"))
    assert message == (
        "config.yml, line 5, models[1].model: single has a tensor for each expert "
        "(model.layers.0.mlp.experts.0.up_proj.weight), fused has the experts of a layer in one "
        "(model.layers.0.mlp.experts.gate_up_proj); bring single into the layout of fused with "
        "transformers 5: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, "
        "save_original_format=False)"
    )


def test_a_model_that_is_cut_is_named_with_its_line(here: Path, models: dict[str, Path]) -> None:
    shutil.copytree(models["b"], "cut")
    with open("cut/model.safetensors", "r+b") as file:
        file.truncate(5000)
    message = refused(LINEAR.format(other="cut"), SourceError)
    assert message.startswith("config.yml, line 5, models[1].model: ")
    assert "cut/model.safetensors" in message


def test_one_model_too_many_is_named_with_the_method(here: Path) -> None:
    text = (
        "merge_method: slerp\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {t: 0.5}\n"
    )
    assert refused(text) == (
        "config.yml, line 1, merge_method: slerp takes exactly 2 sources, not 3"
    )


def test_an_impossible_last_merge_is_refused_before_the_first_is_made(
    here: Path, models: dict[str, Path]
) -> None:
    changed("less", models["b"], {Q.format(0): None})
    text = LINEAR.format(other="b") + "name: half\n---" + LINEAR.format(other="less")
    message = refused(text.replace("model: a", "model: half", 2).replace("half", "a", 1))
    assert message.startswith(
        "config.yml, line 12, models[1].model: less lacks 1 tensor(s) that half has"
    )


def test_a_full_output_directory_is_refused_before_the_first_of_several_merges(
    here: Path,
) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    text = LINEAR.format(other="b") + "name: half\n---" + LINEAR.format(other="half")
    with pytest.raises(MergeError, match="full is not empty and holds no mergeops.json"):
        merge(text, out="full")
    assert not Path("mergeops-work/merges").exists()


def test_an_impossible_merge_among_several_is_named_with_its_line(here: Path) -> None:
    text = STACKED + "name: deep\n---" + LINEAR.format(other="deep")
    message = refused(text, ConfigError)
    assert message.startswith("config.yml, line 9, slices[1].sources[0].layer_range: ")


def test_merges_of_merges_are_planned_from_what_they_will_be(here: Path) -> None:
    deep = STACKED.replace("[1, 9]", "[1, 4]") + "dtype: bfloat16\nname: deep\n---"
    deeper = STACKED.replace("model: a", "model: deep").replace("model: b", "model: deep")
    deeper = deeper.replace("[0, 2]", "[0, 5]").replace("[1, 9]", "[3, 5]") + "name: deeper\n---"
    last = "\nmerge_method: passthrough\nmodels: [{model: deeper}]\n"
    found = merge(deep + deeper + last)
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 7
    b = tensors_of(Path("b"))
    assert torch.equal(found[Q.format(6)], b[Q.format(3)].bfloat16())
    with pytest.raises(ConfigError, match=r"layers \[3, 9\] of deep, .* has 5 layers"):
        merge(deep + deeper.replace("[3, 5]", "[3, 9]") + last, out="again")


def test_a_union_of_a_merges_tokens_is_planned_before_it_is_made(
    here: Path, tiny_llama: Make
) -> None:
    tiny_llama(layers=4, vocabulary_size=136, path=Path("large"))
    first = LINEAR.format(other="large") + "tokenizer_source: union\nname: both\n---"
    last = "\nmerge_method: passthrough\nmodels: [{model: both}]\n"
    assert merge(first + last)["lm_head.weight"].shape == (136, 32)
    message = refused_again(first + LINEAR.format(other="both"))
    assert "128 rows in a and 136 in both" in message


def refused_again(text: str) -> str:
    with pytest.raises(MergeError) as caught:
        merge(text, out="again")
    return str(caught.value)


def test_task_vectors_to_an_adapted_base(here: Path, models: dict[str, Path]) -> None:
    text = """
    merge_method: task_arithmetic
    base_model: base+lora
    models:
      - {model: a, parameters: {weight: 0.5}}
    dtype: float32
    """
    found, base, a = merge(text), tensors_of(models["base"]), tensors_of(models["a"])
    low = tensors_of(models["lora"])
    prefix = "base_model.model." + Q.format(1).removesuffix(".weight")
    adapted = (
        base[Q.format(1)] + low[f"{prefix}.lora_B.weight"] @ low[f"{prefix}.lora_A.weight"] * 2
    )
    torch.testing.assert_close(found[Q.format(1)], adapted + 0.5 * (a[Q.format(1)] - adapted))
    assert Path("out/tokenizer.json").read_bytes() == Path("base/tokenizer.json").read_bytes()
    manifest = json.loads(Path("out/mergeops.json").read_text())
    assert manifest["base"]["uri"] == "lora"
    assert manifest["recipe"]["base_adapter"] == "lora"


def test_a_base_adapter_that_is_a_full_model_is_refused(here: Path) -> None:
    text = (
        "merge_method: task_arithmetic\nmodels: [{model: a}]\nparameters: {weight: 1}\n"
        "base_model: base+b\n"
    )
    assert refused(text, SourceError) == (
        "config.yml, line 4, base_model: base_adapter is b, a full model; it takes a LoRA adapter"
    )


def test_a_checkpoints_code_is_copied_where_it_is_trusted(
    here: Path, models: dict[str, Path]
) -> None:
    changed("own", models["a"], {}, auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})
    Path("own/modeling_own.py").write_text("import torch\n")
    Path("own/layers_own.py").write_text("import torch\n")
    text = LINEAR.format(other="b").replace("model: a", "model: own")
    Path("config.yml").write_text(text)
    warned = workshop.merge_only(
        compose([], recipe_file=Path("config.yml")), Path("out"), Progress(quiet=True)
    ).plan.warnings
    assert not list(Path("out").glob("*.py"))
    (warning,) = warned
    assert "has transformers run modeling_own.py, code of its own, which is not copied" in warning
    assert warning.endswith("set trust_remote_code=true")
    merge(text, "trust_remote_code=true", out="trusted")
    found = sorted(file.name for file in Path("trusted").glob("*.py"))
    assert found == ["layers_own.py", "modeling_own.py"]
    manifest = json.loads(Path("trusted/mergeops.json").read_text())
    assert "modeling_own.py" in manifest["files"]


def test_models_of_two_names_and_one_shape_merge_where_that_is_allowed(
    here: Path, models: dict[str, Path]
) -> None:
    changed("other", models["b"], {}, architectures=["MistralForCausalLM"], model_type="mistral")
    text = LINEAR.format(other="other")
    assert "model_type is llama in a and mistral in other; choose fine-tunes" in refused(text)
    found, plain = (
        merge(text, "mixed_architectures=allow"),
        merge(LINEAR.format(other="b"), out="p"),
    )
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert json.loads(Path("out/config.json").read_text())["model_type"] == "llama"


def test_a_parameter_of_another_method_has_no_effect_and_is_said_so(here: Path) -> None:
    text = (
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
        "parameters:\n  normalize: false\n  embed_slerp: true\n  int8_mask: true\n"
    )
    Path("config.yml").write_text(text)
    recipe = compose([], recipe_file=Path("config.yml"))
    told = workshop.merge_only(recipe, Path("out"), Progress(quiet=True)).plan.warnings
    assert told == (
        "config.yml, line 5, parameters.normalize: model_stock has no normalize, so it has no "
        "effect",
        "config.yml, line 6, parameters.embed_slerp: model_stock has no embed_slerp, so it has no "
        "effect",
    )
    assert "notes" not in recipe.to_dict()


def test_a_parameter_beside_the_model_is_told_where_it_belongs(here: Path) -> None:
    text = LINEAR.format(other="b\n    weight: 0.3")
    assert refused(text, ConfigError) == (
        "config.yml, line 6: models[1].weight stands beside the model; write it below parameters: "
        "{weight: ...}"
    )


def test_the_tokenizer_of_a_model_may_be_written_as_in_earlier_versions(here: Path) -> None:
    text = LINEAR.format(other="b")
    Path("config.yml").write_text(text + "tokenizer_source: model:b\n")
    assert compose([], recipe_file=Path("config.yml")).tokenizer.source == "b"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("base_model: a\nexperts: []\n", "config.yml is a config of mergekit-moe"),
        ("genome: {}\ntasks: []\n", "config.yml is a config of mergekit-evolve"),
    ],
)
def test_configs_of_mergekits_other_commands_are_told_apart(
    here: Path, text: str, match: str
) -> None:
    assert match in refused(text, ConfigError)


def test_pickled_models_merge_like_the_same_as_safetensors(
    here: Path, models: dict[str, Path]
) -> None:
    Path("pickled").mkdir()
    shutil.copy(models["b"] / "config.json", "pickled")
    torch.save(tensors_of(models["b"]), "pickled/pytorch_model.bin")
    found = merge(LINEAR.format(other="pickled"))
    plain = merge(LINEAR.format(other="b"), out="plain")
    assert all(torch.equal(found[name], plain[name]) for name in plain)
