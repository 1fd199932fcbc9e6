"""Configs of the kind that stands on the model hub, unchanged, beside mergekit."""

from __future__ import annotations

from typing import Any

import pytest
from support.mergekit_oracle import LIMIT, Case, far_apart

pytestmark = pytest.mark.parity

OVERLAP = """
slices:
- sources:
  - model: {a}
    layer_range: [0, 3]
- sources:
  - model: {b}
    layer_range: [1, 3]
- sources:
  - model: {a}
    layer_range: [2, 4]
merge_method: passthrough
dtype: float32
"""
SCALED_COPY = """
slices:
- sources: [{model: {a}, layer_range: [0, 2]}]
- sources:
  - model: {a}
    layer_range: [1, 3]
    parameters:
      scale:
        - filter: o_proj
          value: 0.0
        - filter: down_proj
          value: 0.0
        - value: 1.0
- sources: [{model: {a}, layer_range: [3, 4]}]
merge_method: passthrough
dtype: float32
"""
STOCK = """
models:
  - model: {a}
  - model: {b}
  - model: {c}
merge_method: model_stock
base_model: {base}
parameters:
  normalize: false
  int8_mask: true
dtype: float32
"""
LORAS = """
models:
  - model: {base}+{lora}
    parameters:
      weight: 0.7
  - model: {b}
    parameters:
      weight: 0.5
merge_method: task_arithmetic
base_model: {base}
dtype: float32
"""
LORA_BASE = """
models:
  - model: {a}
    parameters:
      weight: 0.7
      density: 0.6
merge_method: ties
base_model: {base}+{lora}
dtype: float32
"""
FILTERED_WEIGHTS = """
models:
  - model: {a}
    parameters:
      weight:
        - filter: v_proj
          value: [0, 0, 1, 1, 0]
        - filter: o_proj
          value: 0.25
        - filter: up_proj
          value: [1, 0, 1]
        - filter: embed_tokens
          value: 0
        - value: 1
  - model: {b}
    parameters:
      weight:
        - filter: v_proj
          value: [1, 1, 0, 0, 1]
        - value: 0.5
base_model: {a}
merge_method: linear
dtype: float32
out_dtype: bfloat16
"""
CHATML_UNION = """
models:
  - model: {a}
    parameters: {weight: 0.5, density: 0.5}
  - model: {b}
    parameters: {weight: 0.5, density: 0.5}
base_model: {base}
merge_method: ties
tokenizer:
  source: union
  tokens:
    "<|one|>":
      source: {a}
    "<|two|>":
      source: {b}
      force: true
chat_template: auto
dtype: float32
"""
PADDED = """
models:
  - model: {a}
    parameters: {weight: 1}
  - model: {b}
    parameters: {weight: 1}
merge_method: linear
tokenizer: {source: {a}, pad_to_multiple_of: 64}
chat_template: chatml
dtype: float32
"""
BREADCRUMBS = """
models:
  - model: {a}
    parameters: {weight: 0.6, density: 0.9, gamma: 0.01}
  - model: {b}
    parameters: {weight: 0.4, density: 0.9, gamma: 0.01}
merge_method: breadcrumbs_ties
base_model: {base}
parameters: {normalize: true, lambda: 0.9, int8_mask: true}
dtype: float32
tokenizer_source: base
"""
HEAD_OF_TIED = """
models:
  - model: {a}
  - model: {b}
merge_method: slerp
base_model: {a}
parameters:
  t:
    - {filter: lm_head, value: 0.9}
    - {filter: embed_tokens, value: 0.1}
    - value: 0.5
  embed_slerp: true
dtype: float32
"""
CASES = [
    Case("overlap", OVERLAP, "mistral"),
    Case("scaled_copy", SCALED_COPY),
    Case("stock", STOCK, "mistral"),
    Case("loras", LORAS, models="adapted"),
    Case("lora_base", LORA_BASE, models="adapted"),
    Case("filtered_weights", FILTERED_WEIGHTS, "qwen2"),
    Case("chatml_union", CHATML_UNION, models="added"),
    Case("padded", PADDED, models="added"),
    Case("breadcrumbs", BREADCRUMBS, "mistral"),
    Case("head_of_tied", HEAD_OF_TIED, "llama_tied"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_config_of_the_hub_gives_what_it_gives_in_mergekit(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    ours, theirs = merged
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    worst = far_apart(ours, theirs)
    assert worst.difference <= LIMIT, worst
