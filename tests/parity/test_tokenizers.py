"""Models with different vocabularies: rows compared by token, since ids may differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
from support.parity_variations import HEADS

pytestmark = pytest.mark.parity

Make = Callable[..., Any]

LINEAR = """
merge_method: linear
models:
  - {model: {base}, parameters: {weight: 0.2}}
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {b}, parameters: {weight: 0.5}}
base_model: {base}
dtype: float32
"""
BASE_LAST = LINEAR.replace("base_model: {base}", "base_model: {b}")
TIES = """
merge_method: ties
models:
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {b}, parameters: {weight: 0.5}}
base_model: {base}
dtype: float32
"""
SLERP = """
merge_method: slerp
models: [{model: {base}}, {model: {a}}]
base_model: {base}
parameters: {t: 0.3}
dtype: float32
"""
TOKENS = """
tokenizer:
  source: union
  tokens:
    <|one|>: {source: {a}}
    <|both|>: {source: {b}, force: true}
    <|two|>: {source: {kind: model_token, model: {a}, token: th}}
    er: {source: {kind: model_token, model: {b}, token_id: 7}, force: true}
    in: {source: {kind: zero}, force: true}
    he: {source: {a}, force: true}
"""
CASES = [
    Case(f"{name}_{source.strip('{}')}", f"{config}tokenizer_source: '{source}'\n", models=models)
    for name, config, sources, models in (
        ("permuted", LINEAR, ("base", "union", "{b}"), "permuted"),
        ("permuted_ties", TIES, ("base", "union", "{b}"), "permuted"),
        ("base_last", BASE_LAST, ("base", "union"), "permuted"),
        ("added", LINEAR, ("base", "union", "{a}"), "added"),
        ("added_ties", TIES, ("base", "union", "{b}"), "added"),
        ("added_slerp", SLERP, ("base", "union", "{a}"), "added"),
        ("added_without_base", TWO, ("union", "{b}"), "added"),
        ("padded", LINEAR, ("base", "union", "{a}"), "padded"),
    )
    for source in sources
] + [
    Case("tokens", LINEAR + TOKENS, models="added"),
    Case("tokens_ties", TIES + TOKENS, models="added"),
]
PADDED = Case(
    "pad_to_multiple", LINEAR + "tokenizer: {source: union, pad_to_multiple_of: 50}", models="added"
)


# A new token of the base's tokenizer ends mergekit with a KeyError.
NEW = Case(
    "new_tokens",
    LINEAR
    + """
tokenizer:
  source: base
  tokens:
    <|one|>: {source: {a}}
    <|new|>: {source: {kind: model_token, model: {b}, token: th}}
""",
    models="added",
)


def by_token(folder: Path) -> dict[str, Any]:
    """A checkpoint with the rows of its embeddings in the order of the tokens' names."""
    ids = token_ids(folder)
    order = [ids[token] for token in sorted(ids)]
    tensors = tensors_of(folder)
    return {**tensors, **{name: tensors[name][order] for name in HEADS}, "tokens": _count(order)}


def _count(order: list[int]) -> Any:
    return torch.tensor([len(order)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_token_has_the_embedding_it_has_in_mergekit(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    ours = merge_ours(pair, tmp_path / "ours")
    worst = far_apart(by_token(ours), by_token(pair.mergekit))
    assert worst.difference <= LIMIT, worst


@pytest.mark.parametrize("case", [PADDED], ids=lambda case: case.name)
def test_padding_makes_the_same_number_of_rows(case: Case, pair: Pair, tmp_path: Path) -> None:
    ours = merge_ours(pair, tmp_path / "ours")
    assert far_apart(by_token(ours), by_token(pair.mergekit)).difference <= LIMIT
    for name in HEADS:
        padding = [tensors_of(place)[name][131:] for place in (ours, pair.mergekit)]
        assert padding[0].shape == (19, 32)
        torch.testing.assert_close(padding[0], padding[1], rtol=1e-5, atol=1e-7)
    config = [json.loads((place / "config.json").read_text()) for place in (ours, pair.mergekit)]
    assert config[0]["vocab_size"] == config[1]["vocab_size"] == 150


@pytest.mark.parametrize("case", [NEW], ids=lambda case: case.name)
def test_new_tokens_of_the_base_are_merged_where_mergekit_fails(
    case: Case, pairs: dict[Case, Pair], family: Make, tmp_path: Path
) -> None:
    assert "KeyError" in pairs[case].status
    found = tensors_of(merge_ours(pairs[case], tmp_path / "ours"))["lm_head.weight"]
    places = family(case.architecture, case.dtype, case.models)
    torch.testing.assert_close(found[128], tensors_of(places["a"])["lm_head.weight"][128])
    ids = json.loads((places["b"] / "tokenizer.json").read_text())["model"]["vocab"]
    torch.testing.assert_close(found[129], tensors_of(places["b"])["lm_head.weight"][ids["th"]])
