"""Planning: what is decided from headers, what is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops.engine import destination
from mergeops.engine.destination import check_space
from mergeops.errors import ConfigError, MergeError, SourceError
from mergeops.planning.plan import Plan

Make = Callable[..., Any]
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tiny_llama: Make) -> dict[str, Path]:
    base = tiny_llama()
    return {"base": base} | {n: tiny_llama(like=base, seed=i) for i, n in enumerate("abc", 1)}


def edited(
    model: Path, out: Path, tensors: dict[str, torch.Tensor | None] | None = None, **config: Any
) -> Path:
    """A copy with tensors replaced (None removes one) and settings of config.json changed."""
    copy = Path(shutil.copytree(model, out))
    if tensors:
        content: dict[str, Any] = load_file(copy / "model.safetensors") | tensors
        content = {name: tensor for name, tensor in content.items() if tensor is not None}
        save_file(content, copy / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | config))
    return copy


def tasks(plan: Plan) -> dict[str, Any]:
    return {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}


def two(models: dict[str, Path]) -> dict[str, Path]:
    return {"a": models["a"], "b": models["b"]}


def test_plan_reads_headers_only(
    plan_of: Make, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.preadv")
    plan = plan_of({"name": "ties"}, models["base"], two(models))
    found = tasks(plan)
    assert found.keys() == load_file(models["base"] / "model.safetensors").keys()
    assert found[Q0].shape == (32, 32)
    assert found[Q0].dtype == "F32"
    assert found[Q0].kind == "merge"
    assert [shard.name for shard in plan.shards] == ["model.safetensors"]
    assert plan.bytes_to_write == plan.shards[0].nbytes


def test_plan_survives_json(plan_of: Make, models: dict[str, Path]) -> None:
    plan = plan_of(
        {"name": "ties"},
        models["base"],
        two(models),
        {"a": {"weight": [0.1, 0.7]}},
        rules=[{"match": "*.mlp.*", "density": {"b": 0.9}}],
    )
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.digest == plan.digest


def test_digest_does_not_depend_on_places_or_names(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    plan = plan_of({"name": "ties"}, models["base"], two(models))
    moved = {n: Path(shutil.copytree(models[n], tmp_path / n)) for n in ("base", "a", "b")}
    other = plan_of({"name": "ties"}, moved["base"], {"x": moved["a"], "y": moved["b"]})
    assert other.digest == plan.digest


def test_digest_depends_on_everything_that_decides_bytes(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    base, sources = models["base"], two(models)
    plans = [
        plan_of({"name": "ties"}, base, sources),
        plan_of({"name": "dare_ties"}, base, sources),
        plan_of({"name": "ties", "density": 0.3}, base, sources),
        plan_of({"name": "ties"}, models["c"], sources),
        plan_of({"name": "ties"}, base, {"b": models["b"], "a": models["a"]}),
        plan_of({"name": "ties"}, base, {"a": models["a"], "b": models["c"]}),
        plan_of({"name": "ties"}, base, sources, {"a": {"weight": 2.0}}),
        plan_of({"name": "ties"}, base, sources, rules=[{"match": "*norm*", "density": 1.0}]),
        plan_of({"name": "ties"}, base, sources, dtype={"save": "bfloat16"}),
        plan_of({"name": "ties"}, base, sources, dtype={"compute": "float64"}),
        plan_of({"name": "ties"}, base, sources, seed=1),
        plan_of({"name": "ties"}, base, sources, output={"shard_size": "20KB"}),
        plan_of({"name": "ties"}, edited(base, tmp_path / "base", eos_token_id=7), sources),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)


def test_digest_depends_on_the_version_of_the_method(
    plan_of: Make, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from mergeops import methods

    plan = plan_of({"name": "linear"}, None, two(models))
    newer = dataclasses.replace(methods.get("linear"), version=99)
    monkeypatch.setitem(methods.registry._REGISTRY, "linear", newer)
    assert plan_of({"name": "linear"}, None, two(models)).digest != plan.digest


def test_a_rule_wins_over_the_source_and_the_source_over_the_method(
    plan_of: Make, models: dict[str, Path]
) -> None:
    plan = plan_of(
        {"name": "ties", "density": 0.1, "weight": 3.0},
        models["base"],
        two(models),
        {"a": {"density": 0.2}},
        rules=[
            {"match": "*.q_proj.*", "density": {"b": 0.7}},
            {"match": "*.self_attn.*", "density": 0.5, "scale": 0.25},
        ],
    )
    found = tasks(plan)
    assert found[Q0].per_source == {"weight": (3.0, 3.0), "density": (0.5, 0.7)}
    assert found[Q0].shared == {"scale": 0.25}
    gate = found["model.layers.0.mlp.gate_proj.weight"]
    assert gate.per_source["density"] == (0.2, 0.1)
    assert gate.shared == {"scale": 1.0}


def test_a_gradient_runs_over_the_depth(plan_of: Make, tiny_llama: Make) -> None:
    base = tiny_llama(layers=5)
    sources = {n: tiny_llama(like=base, seed=i) for i, n in enumerate("ab", 1)}
    plan = plan_of({"name": "slerp"}, None, sources, rules=[{"match": "*", "t": [0.0, 1.0, 0.5]}])
    found = tasks(plan)
    name = "model.layers.{}.mlp.up_proj.weight"
    depths = [found[name.format(i)].shared["t"] for i in range(5)]
    assert depths == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert found["model.embed_tokens.weight"].shared["t"] == 0.0
    assert found["model.norm.weight"].shared["t"] == 0.5
    assert found["lm_head.weight"].shared["t"] == 0.5


def test_rule_that_matches_nothing_is_a_typo(plan_of: Make, models: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"rules\[0\].match is '\*.mpl.\*', which matches no tens"
    ):
        plan_of({"name": "slerp"}, None, two(models), rules=[{"match": "*.mpl.*", "t": 0.1}])


def test_values_out_of_range_are_named_where_they_stand(
    plan_of: Make, models: dict[str, Path]
) -> None:
    base, sources = models["base"], two(models)
    with pytest.raises(ConfigError, match=r"sources.b.density is 1.5; allowed: from 0 to 1"):
        plan_of({"name": "ties"}, base, sources, {"b": {"density": [0.5, 1.5]}})
    with pytest.raises(ConfigError, match=r"rules\[0\].t is -1.0; allowed"):
        plan_of({"name": "slerp"}, None, sources, rules=[{"match": "*", "t": -1}])


def test_weights_that_cancel_are_refused_with_the_tensor(
    plan_of: Make, models: dict[str, Path]
) -> None:
    rules = [{"match": "*.q_proj.*", "weight": {"a": 1.0, "b": -1.0}}]
    with pytest.raises(ConfigError, match=r"q_proj.weight: the weights 1, -1 add up to 0"):
        plan_of({"name": "linear"}, None, two(models), rules=rules)


def test_source_counts_and_missing_base(plan_of: Make, models: dict[str, Path]) -> None:
    three = {n: models[n] for n in "abc"}
    with pytest.raises(MergeError, match="slerp takes exactly 2 sources, not 3"):
        plan_of({"name": "slerp"}, None, three)
    with pytest.raises(MergeError, match="slerp takes exactly 2 sources, not 1"):
        plan_of({"name": "slerp"}, None, {"a": models["a"]})
    with pytest.raises(MergeError, match="linear takes at least 1 source, not 0"):
        plan_of({"name": "linear"}, models["base"], {})
    with pytest.raises(MergeError, match="ties merges task vectors and needs a base"):
        plan_of({"name": "ties"}, None, two(models))


def test_the_same_weights_twice_are_refused(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(models["a"], tmp_path / "copy"))
    with pytest.raises(
        MergeError, match=r"sources a and again have the same weights .* more weight"
    ):
        plan_of({"name": "linear"}, None, {"a": models["a"], "again": copy})


def test_the_base_may_be_a_source_of_a_mean(plan_of: Make, models: dict[str, Path]) -> None:
    plan = plan_of({"name": "linear"}, models["base"], {"start": models["base"], "a": models["a"]})
    assert len(plan.sources) == 2


def test_tensors_missing_or_extra_in_one_source(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    less = edited(models["b"], tmp_path / "less", {Q0: None, "model.norm.weight": None})
    with pytest.raises(MergeError, match=r"less lacks 2 tensor\(s\) that base has \(model.l"):
        plan_of({"name": "ties"}, models["base"], {"a": models["a"], "less": less})
    more = edited(models["b"], tmp_path / "more", {"model.extra": torch.zeros(2)})
    with pytest.raises(
        MergeError, match=r"more has 1 tensor\(s\) that a does not have .model.extra"
    ):
        plan_of({"name": "linear"}, None, {"a": models["a"], "more": more})


def test_tied_head_in_one_only(plan_of: Make, models: dict[str, Path], tmp_path: Path) -> None:
    tied = edited(models["b"], tmp_path / "tied", {"lm_head.weight": None})
    for sources in ({"a": models["a"], "tied": tied}, {"tied": tied, "a": models["a"]}):
        with pytest.raises(MergeError, match="lm_head.weight is in a but not in tied: one ties"):
            plan_of({"name": "linear"}, None, sources)


def test_shapes_that_differ(plan_of: Make, models: dict[str, Path], tmp_path: Path) -> None:
    other = edited(models["b"], tmp_path / "other", {Q0: torch.zeros(32, 16)})
    with pytest.raises(MergeError, match=rf"{Q0} is \[32, 32\] in a and \[32, 16\] in other"):
        plan_of({"name": "linear"}, None, {"a": models["a"], "other": other})


def test_vocabularies_of_different_size(plan_of: Make, tiny_llama: Make) -> None:
    sources = {"small": tiny_llama(), "large": tiny_llama(seed=1, vocabulary_size=136)}
    match = (
        r"vocabulary sizes differ: .* has 128 rows in small and 136 in large; .* "
        r"tokenizer.source=base \(the tokens of small\), .*=large .*.* .*=union"
    )
    with pytest.raises(MergeError, match=match):
        plan_of({"name": "linear"}, None, sources)


def test_whole_numbers_of_different_kinds(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    one = edited(models["a"], tmp_path / "one", {"ids": torch.zeros(2, dtype=torch.int64)})
    two = edited(models["b"], tmp_path / "two", {"ids": torch.zeros(2, dtype=torch.float32)})
    with pytest.raises(MergeError, match="ids is I64 in one and F32 in two; only real numbers"):
        plan_of({"name": "linear"}, None, {"one": one, "two": two})


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "mistral"}, "model_type is llama in a and mistral in other"),
        ({"architectures": ["X"]}, "architectures is LlamaForCausalLM in a and X in other"),
        ({"num_attention_heads": 2}, "num_attention_heads is 4 in a and 2 in other"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is False in a and True in other"),
    ],
)
def test_different_architectures(
    plan_of: Make, models: dict[str, Path], tmp_path: Path, config: dict[str, Any], match: str
) -> None:
    other = edited(models["b"], tmp_path / "other", **config)
    with pytest.raises(MergeError, match=match):
        plan_of({"name": "linear"}, None, {"a": models["a"], "other": other})


def test_other_rope_settings_are_a_warning(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    other = edited(models["b"], tmp_path / "other", rope_theta=1e6)
    plan = plan_of({"name": "linear"}, None, {"a": models["a"], "other": other})
    assert plan.warnings == (
        "rope_theta is None in a and 1000000.0 in other; the merge takes that of a",
    )


def test_tokenizers_that_disagree_are_refused_with_examples(
    plan_of: Make, tiny_llama: Make, tiny_tokenizer: Make
) -> None:
    first = tiny_llama()
    other = tiny_llama(like=first, seed=1, tokenizer=tiny_tokenizer(first="zyx"))
    match = (
        r"tokenizers of first and other disagree on \d+ token\(s\): id 4 is ' ' in first and 'z'"
    )
    with pytest.raises(MergeError, match=match):
        plan_of({"name": "linear"}, None, {"first": first, "other": other})


def test_token_that_only_one_knows_is_a_warning(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    other = edited(models["b"], tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 128, "content": "<new>"})
    (other / "tokenizer.json").write_text(json.dumps(content))
    plan = plan_of({"name": "linear"}, None, {"a": models["a"], "other": other})
    assert "1 token(s) are known to only one of a and other" in plan.warnings[0]


def test_unigram_vocabularies_are_compared_by_position(tmp_path: Path) -> None:
    from mergeops.planning.inputs import PlannedInput
    from mergeops.planning.preflight import check_tokenizers
    from mergeops.planning.tokens.vocabulary import read_vocabulary

    for name, tokens in (("a", ["x", "y"]), ("b", ["y", "x"])):
        (tmp_path / name).mkdir()
        model = {"model": {"vocab": [[token, -1.0] for token in tokens]}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(model))
    assert read_vocabulary(tmp_path / "a").ids == {"x": 0, "y": 1}
    first, second = (
        PlannedInput(name=n, uri=n, path=str(tmp_path / n), sha256="0" * 64) for n in "ab"
    )
    with pytest.raises(MergeError, match="disagree on 2 token"):
        check_tokenizers(first, [first, second])
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    with pytest.raises(MergeError, match=r"tokenizer.json has no vocabulary"):
        check_tokenizers(first, [first, second])


def test_adapter_source_takes_small_files_from_its_base(
    plan_of: Make, models: dict[str, Path], tiny_lora: Make
) -> None:
    adapter = tiny_lora(models["base"])
    plan = plan_of({"name": "linear"}, None, {"a": (adapter, models["base"])})
    places = {c.name: Path(c.path).parent for c in plan.companions}
    assert places["config.json"] == places["tokenizer.json"] == models["base"]


def test_small_files_come_from_the_chosen_source_and_fall_back(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    bare = edited(models["base"], tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (bare / name).unlink()
    (bare / "chat_template.jinja").unlink()
    plan = plan_of({"name": "ties"}, bare, two(models))
    places = {c.name: Path(c.path).parent for c in plan.companions}
    assert places["config.json"] == bare
    assert places["tokenizer.json"] == places["chat_template.jinja"] == models["a"]
    assert places["generation_config.json"] == models["a"]
    plan = plan_of({"name": "ties"}, bare, two(models), tokenizer={"source": "b"})
    places = {c.name: Path(c.path).parent for c in plan.companions}
    assert places["tokenizer.json"] == models["b"]
    assert places["config.json"] == bare


def test_no_config_anywhere(plan_of: Make, models: dict[str, Path], tmp_path: Path) -> None:
    bare = Path(shutil.copytree(models["a"], tmp_path / "bare"))
    (bare / "config.json").unlink()
    with pytest.raises(SourceError, match="bare has no config.json, and no other input has one"):
        plan_of({"name": "linear"}, None, {"bare": bare})


def test_shards_are_filled_in_order(plan_of: Make, models: dict[str, Path]) -> None:
    plan = plan_of({"name": "linear"}, None, two(models), output={"shard_size": "20KB"})
    n = len(plan.shards)
    assert n > 2
    assert [s.name for s in plan.shards] == [
        f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)
    ]
    for shard in plan.shards:
        assert len(shard.tensors) == 1 or sum(t.nbytes for t in shard.tensors) <= 20_000
    assert list(tasks(plan)) == list(tasks(plan_of({"name": "linear"}, None, two(models))))


def test_wider_formats_come_first_in_a_file(
    plan_of: Make, models: dict[str, Path], tmp_path: Path
) -> None:
    mixed = {"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)}
    sources = {n: edited(models[n], tmp_path / n, mixed) for n in "ab"}
    plan = plan_of({"name": "linear"}, None, sources)
    assert [t.dtype for t in plan.shards[0].tensors][-1] == "BF16"
    assert plan.save_dtype == "float32"


@pytest.mark.parametrize("size", ["5", "GB", "0GB", "5 PB", "-1GB", "1e3MB"])
def test_shard_size_that_is_none(plan_of: Make, models: dict[str, Path], size: str) -> None:
    with pytest.raises(
        ConfigError, match=r"output.shard_size is .*; write a number with one of B, K"
    ):
        plan_of({"name": "linear"}, None, two(models), output={"shard_size": size})


def test_too_little_disk(
    plan_of: Make, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"name": "linear"}, None, two(models))
    check_space(plan, tmp_path / "not" / "yet" / "there")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    asked: list[Path] = []
    monkeypatch.setattr(
        destination.shutil, "disk_usage", lambda place: asked.append(place) or usage
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(
        MergeError, match=r"needs [0-9.]+ kB, but only [0-9.]+ k?B are free there; free"
    ):
        check_space(plan, tmp_path / "out")
    # Work is done beside it, which may be another file system.
    assert asked == [tmp_path]


def test_saved_format_follows_the_recipe_or_the_first_input(
    plan_of: Make, models: dict[str, Path], tiny_llama: Make
) -> None:
    half = tiny_llama(like=models["base"], dtype="bfloat16", seed=9)
    plan = plan_of({"name": "ties"}, half, two(models))
    assert {t.dtype for t in tasks(plan).values()} == {"BF16"}
    assert plan.save_dtype == "bfloat16"
    plan = plan_of({"name": "ties"}, half, two(models), dtype={"save": "float16"})
    assert {t.dtype for t in tasks(plan).values()} == {"F16"}
