"""Rows of docs/mergekit.md about whole merges: what mergekit writes or ends with, beside ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.mergekit_oracle import (
    LIMIT,
    TWO,
    Case,
    Pair,
    far_apart,
    merge_ours,
    tensors_of,
    token_ids,
)

from mergeops.errors import MergeError

pytestmark = pytest.mark.parity

Make = Callable[..., Any]

TWICE = """
merge_method: linear
slices:
  - sources:
      - {model: {a}, layer_range: [0, 2], parameters: {weight: 0.5}}
      - {model: {a}, layer_range: [2, 4], parameters: {weight: 0.5}}
dtype: float32
"""
LONGER_LAST = """
merge_method: linear
slices:
  - sources: [{model: {c}, layer_range: [0, 2], parameters: {weight: 1.0}}]
  - sources:
      - {model: {a}, layer_range: [2, 4], parameters: {weight: 0.5}}
      - {model: {b}, layer_range: [2, 4], parameters: {weight: 0.5}}
dtype: float32
"""
CUT = """
merge_method: passthrough
slices: [{sources: [{model: {a}, layer_range: [0, 3]}]}]
dtype: float32
"""
IN_16_BITS = """
merge_method: METHOD
models: [{model: {base}}, {model: {a}}]
base_model: {base}
dtype: bfloat16
"""
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
PADDED = TWO.replace("{b}", "{c}")
TEMPLATED = "tokenizer_source: '{a}'\n"
THREE = TWO.replace("dtype", "  - {model: {c}, parameters: {weight: 0.2}}\ndtype")
NAMED = [
    Case("same_model_twice", TWICE),
    Case("base_that_is_not_listed", TWO + "base_model: {base}"),
    Case("layer_types", CUT, "qwen3"),
    Case("vocabularies_of_two_sizes", PADDED, models="padded"),
    Case("buffers_that_the_table_asks_for", TWO, "gpt_neox"),
]
TWICE_CASE, UNLISTED, TYPES, SIZES, ASKED = NAMED
LAST = Case("longer_last", LONGER_LAST)
CUT_ROWS = Case("cut_rows", PADDED, models="padded", truncate=True)
ONE_VOCABULARY = Case(
    "rows_of_one_vocabulary",
    TWO.replace("{b}", "{base}") + "tokenizer_source: union",
    models="padded",
)
ONE_HEAD = Case("one_head", TWO, "llama_tied", models="one_head")
BUFFERS = Case("buffers", TWO, models="buffered")
TEMPLATE = Case("template", THREE + TEMPLATED, models="templated")
AUTO = Case("template_auto", THREE + TEMPLATED + "chat_template: auto", models="templated")
FUSED = Case("fused_experts", TWO, "mixtral")
UNION = Case("union", TWO + "base_model: {a}\ntokenizer_source: union", models="added")
FORMATS = [
    Case(name, IN_16_BITS.replace("METHOD", name), dtype="bfloat16")
    for name in ("arcee_fusion", "ramplus_tl")
]
ASKED_FOR = [
    Case(f"{case.name}_out", f"{case.config}out_dtype: bfloat16\n", dtype="bfloat16")
    for case in FORMATS
]


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def ended(pairs: dict[Case, Pair], case: Case) -> str:
    """The last line of the error that mergekit ends with."""
    return pairs[case].status.strip().splitlines()[-1].strip()


@pytest.mark.parametrize("case", [TWICE_CASE], ids=str)
def test_the_same_model_twice_is_refused_while_planning(
    case: Case, pairs: dict[Case, Pair], family: Make, tmp_path: Path
) -> None:
    assert ended(pairs, case).startswith("ValueError: Duplicate merge inputs for default.slices[0]")
    assert "in normalize_config" in pairs[case].status
    ours = tensors_of(merge_ours(pairs[case], tmp_path / "ours"))
    a = tensors_of(family(case.architecture, case.dtype, case.models)["a"])
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer in (0, 1):
        expected = (a[name.format(layer)] + a[name.format(layer + 2)]) / 2
        torch.testing.assert_close(ours[name.format(layer)], expected)


@pytest.mark.parametrize("case", [UNLISTED], ids=str)
def test_a_base_that_is_not_listed_takes_no_part(
    case: Case, pairs: dict[Case, Pair], family: Make, tmp_path: Path
) -> None:
    assert ended(pairs, case).startswith("RuntimeError: Missing required parameter weight")
    ours = tensors_of(merge_ours(pairs[case], tmp_path / "ours"))
    places = family(case.architecture, case.dtype, case.models)
    a, b = (tensors_of(places[name]) for name in "ab")
    expected = {name: (0.3 * a[name] + 0.5 * b[name]) / 0.8 for name in a}
    assert far_apart(ours, expected).difference <= LIMIT


@pytest.mark.parametrize("case", [TYPES], ids=str)
def test_lists_of_layers_are_sliced_where_mergekit_ends(
    case: Case, pairs: dict[Case, Pair], tmp_path: Path
) -> None:
    assert "must be equal to the number of `layer_types` (4)" in ended(pairs, case)
    config = config_of(merge_ours(pairs[case], tmp_path / "ours"))
    assert config["layer_types"] == ["full_attention"] * config["num_hidden_layers"]
    assert config["num_hidden_layers"] == 3


@pytest.mark.parametrize("case", [SIZES], ids=str)
def test_vocabularies_of_two_sizes_are_an_error_in_both(
    case: Case, pairs: dict[Case, Pair], tmp_path: Path
) -> None:
    assert ended(pairs, case).startswith("ValueError: Tensor size mismatch for lm_head.weight")
    with pytest.raises(MergeError, match="136 rows in a and 128 in c; rows are matched by token"):
        merge_ours(pairs[case], tmp_path / "ours")


@pytest.mark.parametrize("case", [CUT_ROWS], ids=str)
def test_rows_beyond_the_tokens_are_cut_with_the_unsafe_option_only(
    case: Case, pair: Pair, family: Make, tmp_path: Path
) -> None:
    theirs = tensors_of(pair.mergekit)
    places = family(case.architecture, case.dtype, case.models)
    a, c = (tensors_of(places[name]) for name in "ac")
    for name in (HEAD, EMBEDDINGS):
        assert (a[name].shape[0], theirs[name].shape[0]) == (136, 128)
        torch.testing.assert_close(theirs[name], (0.3 * a[name][:128] + 0.5 * c[name]) / 0.8)
    config = pair.config.read_text() + f"tokenizer_source: {places['a']}\n"
    (tmp_path / "kept.yml").write_text(config)
    ours = merge_ours(Pair(case, pair.mergekit, "", tmp_path / "kept.yml"), tmp_path / "ours")
    assert tensors_of(ours)[HEAD].shape[0] == config_of(ours)["vocab_size"] == 136


@pytest.mark.parametrize("case", [ONE_VOCABULARY], ids=str)
def test_rows_that_are_no_tokens_stay(case: Case, pair: Pair, tmp_path: Path) -> None:
    ours, theirs = merge_ours(pair, tmp_path / "ours"), pair.mergekit
    rows = [(tensors_of(place)[HEAD].shape[0], len(token_ids(place))) for place in (ours, theirs)]
    assert rows == [(136, 129), (129, 129)]
    for name in (HEAD, EMBEDDINGS):
        found, expected = (tensors_of(place)[name][:128] for place in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", [LAST], ids=str)
def test_what_is_behind_the_layers_is_the_last_slices(
    case: Case, pair: Pair, family: Make, tmp_path: Path
) -> None:
    ours, theirs = tensors_of(merge_ours(pair, tmp_path / "ours")), tensors_of(pair.mergekit)
    places = family(case.architecture, case.dtype, case.models)
    a, b = (tensors_of(places[name])[HEAD] for name in "ab")
    torch.testing.assert_close(theirs[HEAD], a)
    torch.testing.assert_close(ours[HEAD], (a + b) / 2)


@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_two_methods_write_float32_where_dtype_asks_for_16_bits(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    ours = merge_ours(pair, tmp_path / "ours")
    formats = [
        {str(t.dtype) for t in tensors_of(place).values()} for place in (ours, pair.mergekit)
    ]
    assert formats == [{"torch.bfloat16"}, {"torch.float32"}]
    assert config_of(pair.mergekit)["dtype"] == config_of(ours)["dtype"] == "bfloat16"


@pytest.mark.parametrize("case", ASKED_FOR, ids=str)
def test_out_dtype_is_written_in_both(case: Case, pair: Pair, tmp_path: Path) -> None:
    for place in (merge_ours(pair, tmp_path / "ours"), pair.mergekit):
        assert {t.dtype for t in tensors_of(place).values()} == {torch.bfloat16}


@pytest.mark.parametrize("case", [ONE_HEAD], ids=str)
def test_a_head_that_some_models_have_is_what_loads(case: Case, pair: Pair, tmp_path: Path) -> None:
    ours = merge_ours(pair, tmp_path / "ours")
    assert far_apart(tensors_of(ours), tensors_of(pair.mergekit)).difference <= LIMIT
    ties = [config_of(place)["tie_word_embeddings"] for place in (ours, pair.mergekit)]
    assert ties == [False, True]


@pytest.mark.parametrize("case", [BUFFERS], ids=str)
def test_buffers_of_one_model_are_in_neither_merge(case: Case, pair: Pair, tmp_path: Path) -> None:
    ours = tensors_of(merge_ours(pair, tmp_path / "ours"))
    assert far_apart(ours, tensors_of(pair.mergekit)).difference <= LIMIT
    assert not any("inv_freq" in name for name in ours)


@pytest.mark.parametrize("case", [ASKED], ids=str)
def test_buffers_that_mergekits_table_asks_for_are_not_needed(
    case: Case, pairs: dict[Case, Pair], family: Make, tmp_path: Path
) -> None:
    assert "required but not present in model" in ended(pairs, case)
    ours = tensors_of(merge_ours(pairs[case], tmp_path / "ours"))
    places = family(case.architecture, case.dtype, case.models)
    assert ours.keys() == load_file(places["a"] / "model.safetensors").keys()


@pytest.mark.parametrize("case", [TEMPLATE], ids=str)
def test_without_a_word_the_template_is_the_tokenizers(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    for place in (merge_ours(pair, tmp_path / "ours"), pair.mergekit):
        assert (place / "chat_template.jinja").read_text() == "{{ 'of a' }}"


@pytest.mark.parametrize("case", [AUTO], ids=str)
def test_auto_is_the_tokenizers_template_here_and_the_usual_one_there(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    places = (merge_ours(pair, tmp_path / "ours"), pair.mergekit)
    found = [(place / "chat_template.jinja").read_text() for place in places]
    assert found == ["{{ 'of a' }}", "{{ 'of b' }}"]


@pytest.mark.parametrize("case", [FUSED], ids=str)
def test_experts_are_as_transformers_has_them_in_mergekit(
    case: Case, pair: Pair, family: Make, tmp_path: Path
) -> None:
    places = family(case.architecture, case.dtype, case.models)
    theirs = tensors_of(pair.mergekit)
    assert theirs["model.layers.0.mlp.experts.gate_up_proj"].shape[0] == 4
    ours = tensors_of(merge_ours(pair, tmp_path / "ours"))
    assert ours.keys() == tensors_of(places["a"]).keys()


@pytest.mark.parametrize("case", [UNION], ids=str)
def test_tokens_that_a_union_adds_follow_the_bases_model_by_model(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    ids = token_ids(merge_ours(pair, tmp_path / "ours"))
    assert [ids[token] for token in ("<|one|>", "<|both|>", "<|two|>")] == [128, 129, 130]
    assert token_ids(pair.mergekit).keys() == ids.keys()
