"""The small files of the result: all that belong to the model, from one input or reconciled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.checkpoint import is_processor_file, is_small_file
from mergeops.engine.execute import merge
from mergeops.errors import SourceError
from mergeops.planning.companions import indented

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def pair(tiny_llama: Make) -> tuple[Path, Path]:
    first = tiny_llama()
    return first, tiny_llama(like=first, seed=1)


def copied(model: Path, out: Path, drop: tuple[str, ...] = (), **files: Any) -> Path:
    """A copy without some files, and with settings changed in others: ``config={...}``."""
    shutil.copytree(model, out)
    for name in drop:
        (out / name).unlink()
    for name, changes in files.items():
        path = out / f"{name}.json"
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, **changes}))
    return out


def average(plan_of: Make, sources: dict[str, Path], **recipe: Any) -> Any:
    return plan_of({"name": "linear"}, None, sources, **recipe)


def merged(plan: Any, out: Path) -> Path:
    merge(plan, out)
    return out


def read(folder: Path, name: str = "config.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


@pytest.mark.parametrize(
    "name",
    [
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *("tekken.json", "tiktoken.model", "spm.model", "qwen.tiktoken", "vocab.bpe", "dict.txt"),
        *("normalizer.json", "source.spm", "target.spm", "bpe.codes", "tokenizer.model"),
        *("a_file_of_next_year.json", "special_tokens_map.json"),
        *("logits_processor.json", "quantizer_config.json"),
    ],
)
def test_small_files_of_a_model_are_known(name: str) -> None:
    assert is_small_file(name)


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"),
        *("trainer_state.json", "all_results.json", "eval_results.json", "trainer_log.jsonl"),
        *("pytorch_model.bin", "model.safetensors", "model.safetensors.index.json", "x.gguf"),
        *("pytorch_model.bin.index.json", "adapter_config.json", "mergeops.json", "README.md"),
        *("training_args.json", "generated_predictions.txt", "log.txt", "train_metrics.json"),
        *("config.json", "generation_config.json", "quantize_config.json", "params.json"),
        *("requirements.txt", ".gitattributes", "modeling_own.py", "run_config.json"),
        *("modules.json", "sentence_bert_config.json", "dataset_info.json", "LICENSE.txt"),
    ],
)
def test_leftovers_are_known(name: str) -> None:
    assert not is_small_file(name)


def test_a_processor_is_told_from_a_tokenizer() -> None:
    assert is_processor_file("video_preprocessor_config.json")
    assert not is_processor_file("tokenizer_config.json")


def test_small_files_come_along_and_leftovers_do_not(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(
        pair[0],
        tmp_path / "a",
        preprocessor_config={"size": 1},
        processor_config={"size": 2},
        trainer_state={"step": 3},
        normalizer={"colour": "color"},
    )
    (a / "tiktoken.model").write_bytes(b"words")
    out = merged(average(plan_of, {"a": a, "b": pair[1]}), tmp_path / "out")
    assert read(out, "preprocessor_config.json") == {"size": 1}
    assert read(out, "processor_config.json") == {"size": 2}
    assert read(out, "normalizer.json") == {"colour": "color"}
    assert (out / "tiktoken.model").read_bytes() == b"words"
    assert not (out / "trainer_state.json").exists()


def test_a_processor_is_one_input_s_and_said_where_it_is_not_the_first_s(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    b = copied(pair[1], tmp_path / "b", preprocessor_config={"of": "b"})
    plan = average(plan_of, {"a": pair[0], "b": b})
    assert any("a has no processor; preprocessor_config.json of" in note for note in plan.warnings)
    a = copied(pair[0], tmp_path / "a", processor_config={"of": "a"})
    plan = average(plan_of, {"a": a, "b": b}, tokenizer={"source": "b"})
    out = merged(plan, tmp_path / "out")
    assert read(out, "processor_config.json") == {"of": "a"}
    assert not (out / "preprocessor_config.json").exists()


def test_a_merge_without_a_tokenizer_says_so(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    bare = {n: copied(p, tmp_path / n, drop=names) for n, p in zip("ab", pair, strict=True)}
    plan = average(plan_of, bare)
    assert "no input has a tokenizer, so the merge has none; put one beside it" in plan.warnings


def test_a_tokenizer_of_bytes_has_no_vocabulary_and_comes_along(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    models = {n: copied(p, tmp_path / n, drop=names) for n, p in zip("ab", pair, strict=True)}
    ByT5Tokenizer().save_pretrained(models["b"])
    plan = average(plan_of, models)
    assert not any("no input has a tokenizer" in note for note in plan.warnings)
    out = merged(plan, tmp_path / "out")
    assert isinstance(AutoTokenizer.from_pretrained(out), ByT5Tokenizer)
    assert read(out, "added_tokens.json") == read(models["b"], "added_tokens.json")


def test_without_a_tokenizer_the_small_files_are_those_of_the_config_s_input(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    models = {
        n: copied(p, tmp_path / n, drop=names, label_map={"of": n})
        for n, p in zip("ab", pair, strict=True)
    }
    out = merged(average(plan_of, models), tmp_path / "out")
    assert read(out, "label_map.json") == {"of": "a"}


def test_a_merge_that_sees_without_a_processor_says_so(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    own = {"architectures": ["OursForVision"], "vision_config": {"hidden_size": 8}}
    models = {n: copied(p, tmp_path / n, config=own) for n, p in zip("ab", pair, strict=True)}
    plan = average(plan_of, models)
    assert any(note.startswith("the model sees or hears, and no") for note in plan.warnings)


def test_ids_of_special_tokens_are_those_of_the_tokenizer_s_input(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    a = copied(pair[0], tmp_path / "a", drop=names)
    b = copied(
        pair[1],
        tmp_path / "b",
        config={"eos_token_id": 7},
        generation_config={"eos_token_id": [7, 2], "temperature": 0.1},
    )
    plan = average(plan_of, {"a": a, "b": b})
    said = [note for note in plan.warnings if "eos_token_id" in note]
    assert said == [
        "config.json: eos_token_id is 2 in a, and 7 in b, which the tokenizer is from; the merge "
        "has 7",
        "generation_config.json: eos_token_id is 2 in a, and [7, 2] in b, which the tokenizer is "
        "from; the merge has [7, 2]",
    ]
    out = merged(plan, tmp_path / "out")
    assert read(out)["eos_token_id"] == 7
    assert read(out, "generation_config.json")["eos_token_id"] == [7, 2]
    assert "temperature" not in read(out, "generation_config.json")


def test_what_ends_a_text_goes_with_the_chat_template(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(pair[0], tmp_path / "a", drop=("chat_template.jinja",))
    b = copied(pair[1], tmp_path / "b", generation_config={"eos_token_id": 9, "pad_token_id": 8})
    plan = average(plan_of, {"a": a, "b": b})
    assert any("9 in b, which the chat template is from" in note for note in plan.warnings)
    generation = read(merged(plan, tmp_path / "out"), "generation_config.json")
    assert generation["eos_token_id"] == 9
    assert generation["pad_token_id"] == read(a, "generation_config.json")["pad_token_id"]


def test_what_ends_a_text_goes_with_a_chat_template_that_is_not_the_tokenizers(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(pair[0], tmp_path / "a")
    (a / "chat_template.jinja").write_text("{{ messages }} of a")
    ids = {"eos_token_id": 9, "pad_token_id": 8}
    b = copied(pair[1], tmp_path / "b", config=ids, generation_config=ids)
    plan = average(plan_of, {"a": a, "b": b}, tokenizer={"source": "b", "chat_template": "a"})
    out = merged(plan, tmp_path / "out")
    assert read(out)["eos_token_id"] == 9
    generation = read(out, "generation_config.json")
    theirs = read(a, "generation_config.json")["eos_token_id"]
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (theirs, 8)


def test_settings_of_generation_of_another_input_get_the_ids_of_the_tokenizer_s(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(pair[0], tmp_path / "a", drop=("generation_config.json",))
    more = {"eos_token_id": [2, 9], "temperature": 0.6, "do_sample": True}
    b = copied(pair[1], tmp_path / "b", generation_config=more)
    plan = average(plan_of, {"a": a, "b": b})
    assert plan.warnings == (
        "generation_config.json: eos_token_id is [2, 9] in b, and 2 in a, which the tokenizer is "
        "from; the merge has 2",
        "generation_config.json: temperature is unset in a and 0.6 in b; do_sample is unset in a "
        "and True in b; the merge has b's",
    )
    generation = read(merged(plan, tmp_path / "out"), "generation_config.json")
    assert (generation["eos_token_id"], generation["temperature"]) == (2, 0.6)


def test_inputs_that_agree_are_not_spoken_of(plan_of: Make, pair: tuple[Path, Path]) -> None:
    assert average(plan_of, dict(zip("ab", pair, strict=True))).warnings == ()


def test_ids_beyond_the_vocabulary_and_texts_beyond_the_context_are_said(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(
        pair[0],
        tmp_path / "a",
        config={"eos_token_id": 50256},
        generation_config={"max_length": 4096, "eos_token_id": [2, 128]},
    )
    warnings = average(plan_of, {"a": a, "b": pair[1]}).warnings
    rows = "and the vocabulary has 128 rows: there is no such token"
    assert f"config.json: eos_token_id is 50256, {rows}" in warnings
    assert f"generation_config.json: eos_token_id is 128, {rows}" in warnings
    assert any("max_length is 4096, and the model's context has 128 pos" in w for w in warnings)


def test_tokens_that_the_model_has_no_row_for_are_said(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = read(pair[0])["vocab_size"]
    tokenizer = read(pair[0], "tokenizer.json")
    more = [{**tokenizer["added_tokens"][0], "id": rows + i, "content": f"<{i}>"} for i in (1, 0)]
    added = {"tokenizer": {"added_tokens": [*tokenizer["added_tokens"], *more]}}
    model = copied(pair[0], tmp_path / "model", **added)
    (told,) = [w for w in average(plan_of, {"a": model}).warnings if "no row for" in w]
    assert f"2 token(s) that the model has no row for, e.g. '<0>', {rows} of {rows} rows" in told
    assert not any("no row for" in w for w in average(plan_of, {"a": pair[0]}).warnings)


@pytest.mark.parametrize("nested", [False, True])
def test_what_is_left_of_a_quantisation_over_plain_weights_is_dropped_and_said(
    nested: bool, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    left = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    settings = {"text_config": {"x": 1, **left}, "architectures": ["Ours"]} if nested else left
    models = {n: copied(p, tmp_path / n, config=settings) for n, p in zip("ab", pair, strict=True)}
    plan = average(plan_of, models)
    assert any("has a quantization_config" in note for note in plan.warnings)
    assert "quantization_config" not in json.dumps(read(merged(plan, tmp_path / "out")))


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"x": [1, NaN]}', r"config.json: x\[1\] is NaN, which is no number"),
        ('{"x": {"y": "\\ud83d"}}', "config.json: x.y holds half of a surrogate pair"),
        ('{"\\udc00": 1}', "config.json: a key holds half of a surrogate pair"),
    ],
)
def test_what_no_json_can_hold_is_refused_where_it_is_read(
    text: str, match: str, name: str, plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(pair[0], tmp_path / "a")
    (a / f"{name}.json").write_text(text)
    with pytest.raises(SourceError, match=match):
        average(plan_of, {"a": a, "b": pair[1]})


def test_infinity_is_written_as_json(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    limits = {"time_step_limit": [0.0, float("inf")], "architectures": ["Ours"]}
    models = {n: copied(p, tmp_path / n, config=limits) for n, p in zip("ab", pair, strict=True)}
    out = merged(average(plan_of, models), tmp_path / "out")
    assert "Infinity," not in (out / "config.json").read_text()
    assert read(out)["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


@pytest.mark.parametrize(
    "value",
    [
        {"model": {"vocab": {'a"\\\n\x01é\u2028': 0, "": -1}, "merges": [["a", "b"], ["c", "d"]]}},
        {"list": [[], {}, [[]], [{"k": None}]], "kinds": [True, False, None, 1.5, 1e-05, 2**70]},
        {},
        "text",
    ],
)
def test_a_vocabulary_is_written_as_json_writes_it(value: Any) -> None:
    assert indented(value) == json.dumps(value, indent=2, ensure_ascii=False)


def test_settings_of_generation_in_which_inputs_differ_are_said_with_whose_the_merge_has(
    plan_of: Make, tiny_llama: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    # What transformers takes where a file says nothing is no difference.
    more = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "do_sample": False,
        "output_scores": True,
    }
    a = copied(pair[0], tmp_path / "a", generation_config={"eos_token_id": [2, 9]})
    b = copied(pair[1], tmp_path / "b", generation_config=more)
    plan = average(plan_of, {"a": a, "b": b, "c": tiny_llama(like=pair[0], seed=2)})
    assert plan.warnings == (
        "generation_config.json: eos_token_id is [2, 9] in a and 2 in b, c; temperature is unset "
        "in a, c and 0.6 in b; top_p is unset in a, c and 0.9 in b; the merge has a's",
    )


def test_special_tokens_in_which_inputs_differ_are_said_for_each_file(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ids = {"pad_token_id": 2}
    token = {"pad_token": {"__type": "AddedToken", "content": "</s>"}, "padding_side": "left"}
    b = copied(pair[1], tmp_path / "b", config=ids, generation_config=ids, tokenizer_config=token)
    assert average(plan_of, {"a": pair[0], "b": b}).warnings == (
        "generation_config.json: pad_token_id is 3 in a and 2 in b; the merge has a's",
        "tokenizer_config.json: pad_token is '<pad>' in a and '</s>' in b; padding_side is unset "
        "in a and 'left' in b; the merge has a's",
    )
    c = copied(pair[1], tmp_path / "c", config=ids)
    assert average(plan_of, {"a": pair[0], "c": c}).warnings == (
        "config.json: pad_token_id is 3 in a and 2 in c; the merge has a's",
    )
    # Without a file for it, transformers generates by config.json.
    d = copied(pair[1], tmp_path / "d", drop=("generation_config.json",), config=ids)
    assert average(plan_of, {"a": pair[0], "d": d}).warnings == (
        "generation_config.json: pad_token_id is 3 in a and 2 in d; the merge has a's",
    )


def test_many_settings_that_differ_are_counted(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    many = {f"setting_{i}": i for i in range(8)}
    b = copied(pair[1], tmp_path / "b", generation_config=many)
    (note,) = average(plan_of, {"a": pair[0], "b": b}).warnings
    assert "setting_5 is unset in a and 5 in b; and 2 more; the merge has a's" in note


def test_weights_beside_the_model_that_are_no_part_of_it_are_said(
    plan_of: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a = copied(pair[0], tmp_path / "a")
    for name in ("value_head.safetensors", "consolidated.safetensors"):
        shutil.copy(a / "model.safetensors", a / name)
    assert average(plan_of, {"a": a, "b": pair[1]}).warnings == (
        "a has value_head.safetensors beside its model, which transformers does not load with it: "
        "the merge is without",
    )
