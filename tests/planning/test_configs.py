"""Configs are compared as transformers reads them, not key by key."""

from __future__ import annotations

from typing import Any

import pytest

from mergeops.errors import MergeError, SourceError
from mergeops.planning.config_check import check_same_architecture

NEW = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "dtype": "float32",
    "transformers_version": "5.1.0",
}
OLD = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "pretraining_tp": 1,
    "use_cache": False,
}
TEXT = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
MULTIMODAL = {"model_type": "llava", "text_config": TEXT}


def notes(one: dict[str, Any], other: dict[str, Any], **more: Any) -> list[str]:
    return check_same_architecture({"a": one, "b": other}, **more)


def nested(**settings: Any) -> dict[str, Any]:
    return {**MULTIMODAL, "text_config": {**TEXT, **settings}}


def test_two_spellings_of_one_model_are_no_difference() -> None:
    assert notes(NEW, OLD) == []
    assert notes(OLD, NEW) == []


def test_old_and_new_words_for_scaled_positions_are_one() -> None:
    scaling = {"factor": 2.0, "rope_type": "linear"}
    new = {**NEW, "rope_parameters": {**scaling, "rope_theta": 10000.0}}
    old = {**OLD, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert notes(new, old) == []
    assert notes(new, {**OLD, "rope_scaling": {"type": "linear", "factor": 4.0}}) == [
        "rope_parameters.factor is 2.0 in a and 4.0 in b; the merge takes that of a"
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rope_theta": 5e5}, "rope_parameters.rope_theta is 10000.0 in a and 500000.0 in b"),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps is 1e-06 in a and 0.01 in b"),
    ],
)
def test_a_real_difference_is_one_note(settings: dict[str, Any], said: str) -> None:
    assert notes(OLD, {**OLD, **settings}) == [f"{said}; the merge takes that of a"]
    [note] = notes(MULTIMODAL, nested(**settings))
    assert note == f"text_config.{said}; the merge takes that of a"


SLIDING = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("kind", "new", "old"),
    [
        (
            "phi3",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        ),
        ("gemma3_text", {"layer_types": SLIDING * 2}, {"sliding_window_pattern": 2}),
        ("modernbert", {"layer_types": SLIDING[::-1] * 2}, {"global_attn_every_n_layers": 2}),
        ("gpt2", {"n_positions": 64}, {"n_positions": 64, "n_ctx": 64}),
    ],
)
def test_what_a_new_config_says_in_another_setting_is_no_difference(
    kind: str, new: dict[str, Any], old: dict[str, Any]
) -> None:
    size = {"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4, "pad_token_id": 0}
    start = {"model_type": kind, **size}
    assert notes({**start, **new}, {**start, **old}) == []
    assert notes({**start, **old}, {**start, **new}) == []
    if "layer_types" in new:
        other = {**start, **{key: 4 for key in old}}
        assert notes({**start, **new}, other)[0].startswith("layer_types is")


def test_defaults_of_scaled_positions_that_one_config_spells_out_are_no_difference() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    yarn |= {"original_max_position_embeddings": 16}
    one, other = {**NEW, "rope_parameters": yarn}, {**yarn, "beta_fast": 32, "beta_slow": 1.0}
    assert notes(one, {**NEW, "rope_parameters": other}) == []
    assert notes({**NEW, "rope_parameters": other}, one) == []
    [note] = notes(one, {**NEW, "rope_parameters": {**other, "beta_fast": 16}})
    assert note.startswith("rope_parameters.beta_fast is None in a and 16 in b")


def test_an_older_word_that_says_something_else_is_said() -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    one = {"model_type": "phi3", "pad_token_id": 0, "rope_parameters": rope}
    assert notes(one, {**one, "partial_rotary_factor": 1.0}) == [
        "partial_rotary_factor is None in a and 1.0 in b; the merge takes that of a"
    ]


@pytest.mark.parametrize("word", ["auto", "torch.bfloat16", "fp16", None])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_that_torch_has_not_is_none_of_the_model(key: str, word: str | None) -> None:
    other = {name: value for name, value in NEW.items() if name != "dtype"}
    assert notes(NEW, {**other, key: word}) == []
    assert notes(MULTIMODAL, nested(**{key: word})) == []


def test_settings_of_a_run_and_of_the_file_are_none_of_the_model() -> None:
    other = {**NEW, "attention_dropout": 0.1, "initializer_range": 1.0, "_name_or_path": "x"}
    assert notes(NEW, {**other, "quantization_config": {"quant_method": "awq"}}) == []


def test_heads_inside_a_multimodal_model_make_another_architecture() -> None:
    with pytest.raises(MergeError, match="text_config.num_attention_heads is 4 in a and 2 in b;"):
        notes(MULTIMODAL, nested(num_attention_heads=2, num_key_value_heads=2, head_dim=8))


@pytest.mark.parametrize(
    ("kind", "setting", "values"),
    [
        ("gpt2", "n_head", (12, 6)),
        ("t5", "num_heads", (8, 4)),
        ("bart", "encoder_attention_heads", (16, 8)),
        ("gpt2", "activation_function", ("gelu_new", "relu")),
    ],
)
def test_the_words_of_other_families_mean_the_same(
    kind: str, setting: str, values: tuple[Any, Any]
) -> None:
    with pytest.raises(MergeError, match=f"{setting} is {values[0]} in a and {values[1]} in b"):
        notes({"model_type": kind}, {"model_type": kind, setting: values[1]})


def test_labels_in_another_order_are_said() -> None:
    labels = [{"0": "good", "1": "bad"}, {"0": "bad", "1": "good"}]
    one, other = ({"model_type": "bert", "id2label": ids} for ids in labels)
    assert "id2label is {'0': 'good', '1': 'bad'} in a and" in notes(one, other)[0]


def test_many_differences_of_one_input_are_counted() -> None:
    other = {"model_type": "of_our_own", **{f"setting{i}": i for i in range(12)}}
    said = notes({"model_type": "of_our_own"}, other)
    assert len(said) == 9
    assert said[-1] == "4 more settings differ between a and b"


def test_models_of_two_kinds_that_are_allowed_say_which_settings_of_weight_differ() -> None:
    other = {**NEW, "model_type": "mistral", "sliding_window": 7}
    assert notes(NEW, other, mixed=True) == [
        "model_type is llama in a and mistral in b; the merge takes that of a"
    ]


def test_a_config_that_cannot_be_read_is_about_its_source() -> None:
    with pytest.raises(SourceError, match="cannot make the model") as refused:
        notes(NEW, {**NEW, "num_hidden_layers": "two"})
    assert refused.value.at == "sources.b"


def test_what_slices_decide_is_no_difference() -> None:
    one = {"model_type": "qwen2", "layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}
    other = {"model_type": "qwen2", "layer_types": ["full_attention"] * 3, "num_hidden_layers": 3}
    assert notes(one, other, settled=["num_hidden_layers"]) == []


def test_settings_that_one_config_of_a_model_unknown_to_transformers_lacks_are_no_difference() -> (
    None
):
    configs = {"a": {"model_type": "ours", "head_dim": 8}, "b": {"model_type": "ours"}}
    assert check_same_architecture(configs) == []
    with pytest.raises(MergeError, match="head_dim is 8 in a and 16 in b"):
        check_same_architecture({"a": configs["a"], "b": {"head_dim": 16}})
