"""What mergekit's YAML can say besides a method: gradients, filters, slices, its own examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mergekit_oracle import LIMIT, Case, Pair, far_apart, filled, merge_ours, tensors_of

pytestmark = pytest.mark.parity

Make = Callable[..., Any]

CONFIGS = {
    "gradient_in_slices": """
merge_method: slerp
slices:
  - sources:
      - {model: {a}, layer_range: [0, 4]}
      - {model: {b}, layer_range: [0, 4]}
base_model: {a}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float32
""",
    "gradient_of_models": """
merge_method: ties
models:
  - model: {a}
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: {b}
    parameters: {density: 0.5, weight: [0.2, 0.3, 0.7, 1]}
  - model: {c}
    parameters:
      density: 0.33
      weight: [{filter: mlp, value: 0.5}, {value: 0.2}]
base_model: {base}
parameters: {normalize: true}
dtype: float32
""",
    "bio_merge": """
merge_method: ties
models:
  - {model: {base}}
  - {model: {a}, parameters: {density: 0.53, weight: 0.4}}
  - {model: {b}, parameters: {density: 0.53, weight: 0.3}}
base_model: {base}
parameters: {normalize: false, int8_mask: true}
dtype: float32
""",
    "linear_example": """
merge_method: linear
models:
  - {model: {a}, parameters: {weight: 1.0}}
  - {model: {b}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: 0.5}}
dtype: float32
""",
    "stacked_layers": """
merge_method: passthrough
slices:
  - sources: [{model: {a}, layer_range: [0, 3]}]
  - sources: [{model: {b}, layer_range: [1, 4]}]
  - sources: [{model: {c}, layer_range: [3, 4]}]
dtype: float32
""",
    "stacked_with_scale": """
merge_method: passthrough
slices:
  - sources:
      - model: {a}
        layer_range: [0, 4]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: 0.5}
            - value: 1.0
dtype: float32
""",
    "slices_of_shifted_layers": """
merge_method: linear
slices:
  - sources:
      - {model: {a}, layer_range: [0, 2], parameters: {weight: 0.4}}
      - {model: {b}, layer_range: [1, 3], parameters: {weight: [0.2, 0.8]}}
  - sources:
      - {model: {b}, layer_range: [2, 4]}
      - {model: {c}, layer_range: [0, 2]}
    parameters: {weight: 0.5}
parameters: {weight: 1.0}
dtype: float32
""",
    "slices_with_a_base": """
merge_method: task_arithmetic
slices:
  - sources:
      - {model: {base}, layer_range: [0, 3]}
      - {model: {a}, layer_range: [0, 3], parameters: {weight: 0.6}}
      - {model: {b}, layer_range: [1, 4], parameters: {weight: 0.4}}
base_model: {base}
dtype: float32
""",
    "precedence": """
merge_method: task_arithmetic
slices:
  - sources:
      - {model: {base}, layer_range: [0, 2]}
      - {model: {a}, layer_range: [0, 2], parameters: {weight: [{filter: q_proj, value: 0.9}]}}
      - {model: {b}, layer_range: [0, 2]}
    parameters: {weight: [{filter: mlp, value: 0.1}]}
  - sources:
      - {model: {base}, layer_range: [2, 4]}
      - {model: {a}, layer_range: [2, 4]}
      - {model: {b}, layer_range: [2, 4]}
base_model: {base}
parameters: {weight: [{filter: norm, value: 0.5}, {filter: "*", value: 0.3}], normalize: true}
dtype: float32
""",
    "outliers_of_none": """
merge_method: breadcrumbs
models:
  - {model: {a}, parameters: {weight: 1.0, density: 0.5, gamma: 0}}
  - {model: {b}, parameters: {weight: 0.5, density: 0.5}}
base_model: {base}
dtype: float32
""",
    "base_in_the_middle": """
merge_method: slerp
models: [{model: {a}}, {model: {base}}]
base_model: {base}
parameters: {t: [{filter: lm_head, value: 0.9}, {value: 0.2}]}
dtype: float32
""",
}
MODULES = """
merge_method: linear
modules:
  encoder: {models: [{model: {a}}, {model: {b}}], parameters: {weight: 0.5}}
  decoder:
    slices:
      - sources: [{model: {a}, layer_range: [0, 2]}, {model: {b}, layer_range: [0, 2]}]
        parameters: {weight: [0.3, 0.9]}
      - sources: [{model: {c}, layer_range: [2, 4], parameters: {weight: 1.0}}]
dtype: float32
"""
# Gradients end at 1 behind the last layer here, and go back to 0 there in mergekit.
BEHIND = ("model.norm.weight", "lm_head.weight")
GRADIENT = Case("gradient_of_models", CONFIGS.pop("gradient_of_models"))
GRADIENT_COMPAT = replace(GRADIENT, compat=True)
# mergekit divides by the sum of the weights that agree: a negative one alone is turned around.
NEGATIVE = """
merge_method: ties
models:
  - {model: {a}, parameters: {weight: 1.0, density: 0.7}}
  - {model: {b}, parameters: {weight: -0.4, density: 0.7}}
base_model: {base}
parameters: {lambda: 0.8, normalize: NORMALIZE}
dtype: float32
"""
SUMMED = Case("negative_weights", NEGATIVE.replace("NORMALIZE", "false"))
DIVIDED = Case("negative_weights_normalized", NEGATIVE.replace("NORMALIZE", "true"))
SLICED = ("gradient_in_slices", "stacked_layers", "slices_of_shifted_layers", "slices_with_a_base")
OTHERS = ("mistral", "phi3", "stablelm", "starcoder2", "granite", "llama_tied")
CASES = [
    *(Case(name, config) for name, config in CONFIGS.items()),
    *(Case(name, CONFIGS[name], other) for other in OTHERS for name in SLICED),
    GRADIENT_COMPAT,
    SUMMED,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_config_gives_what_it_gives_in_mergekit(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    worst = far_apart(*merged)
    assert worst.difference <= LIMIT, worst


@pytest.mark.parametrize("case", [GRADIENT], ids=str)
def test_what_is_behind_the_last_layer_has_the_last_value_of_a_gradient(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    ours, theirs = merged
    inside = [name for name in theirs if name not in BEHIND]
    worst = far_apart({n: ours[n] for n in inside}, {n: theirs[n] for n in inside})
    assert worst.difference <= LIMIT, worst
    assert not any(torch.allclose(ours[name], theirs[name]) for name in BEHIND)


@pytest.mark.parametrize("case", [Case("modules", MODULES, "t5")], ids=str)
def test_modules_are_merged_alike_and_what_is_in_none_is_not_lost(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    ours, theirs = merged
    assert ours.keys() - theirs.keys() == {"shared.weight"}
    worst = far_apart({name: ours[name] for name in theirs}, theirs)
    assert worst.difference <= LIMIT, worst


@pytest.mark.parametrize("case", [DIVIDED], ids=str)
def test_a_negative_weight_is_not_turned_around_by_its_own_sum(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]], family: Make
) -> None:
    places = family(case.architecture, case.dtype, case.models)
    base, a, b = (tensors_of(places[name]) for name in ("base", "a", "b"))
    alone = 0
    for name, start in base.items():
        change_a, change_b = _trimmed(a[name] - start), _trimmed(b[name] - start)
        only_b = (change_a == 0) & (change_b != 0)
        alone += int(only_b.sum())
        for result, sign in zip(merged, (-1, 1), strict=True):
            expected = (start + 0.8 * sign * change_b)[only_b]
            torch.testing.assert_close(result[name][only_b], expected, rtol=1e-5, atol=1e-6)
    assert alone > 1000


def _trimmed(delta: torch.Tensor) -> torch.Tensor:
    kept = int(0.7 * delta.numel())
    cut = delta.abs().flatten().sort(descending=True).values[kept - 1]
    return torch.where(delta.abs() >= cut, delta, 0.0)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("name", ["stacked_layers", "slices_with_a_base"])
def test_slices_that_mergekit_fails_on_give_models_that_generate(
    name: str, architecture: str, family: Make, tmp_path: Path
) -> None:
    """It fails on layer_types of the config and missing buffers, and renames experts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    case = Case(name, CONFIGS[name], architecture)
    config = tmp_path / "config.yml"
    config.write_text(filled(case, family(architecture, "float32", "")))
    out = merge_ours(Pair(case, tmp_path, "", config), tmp_path / "ours")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.num_hidden_layers == (7 if name == "stacked_layers" else 3)
    model.generate(**tokenizer("the", return_tensors="pt"), max_new_tokens=2, min_new_tokens=2)
