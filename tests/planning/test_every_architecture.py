"""Merges of every architecture load with transformers, complete, and compute.

Each is sliced, with layers shifted, repeated and put in another order, and merged by a method on
task vectors with a filter: what only one family of names or configs does, shows in one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, save_family

from mergeops import workshop
from mergeops.progress import Progress
from mergeops.recipe.composition import compose

Make = Callable[..., Any]

HEAD = """
merge_method: ties
base_model: {base}
parameters:
  density: 0.5
  weight: [{{filter: weight, value: 0.3}}, {{value: 0.6}}]
dtype: bfloat16
"""
SLICES = """
  - sources: [{{model: {a}, layer_range: [0, 3]}}, {{model: {b}, layer_range: [0, 3]}}]
  - sources: [{{model: {b}, layer_range: [2, 4]}}]
"""
SHIFTED = """
      - sources: [{{model: {b}, layer_range: [1, 3]}}]
      - sources: [{{model: {a}, layer_range: [0, 2]}}, {{model: {b}, layer_range: [0, 2]}}]
"""
SLICED = f"{HEAD}slices:{SLICES}"
MODULES = f"{HEAD}modules:\n  encoder:\n    slices:{SHIFTED}  decoder:\n    slices:{SHIFTED}"
MULTIMODAL = (
    f"{HEAD}modules:\n  text_decoder:\n    slices:{SHIFTED}"
    "  multi_modal_projector: {{models: [{{model: {a}}}, {{model: {b}}}]}}\n"
    "  vision_tower: {{models: [{{model: {a}}}]}}\n"
)
CONFIGS = {"t5": MODULES, "whisper": MODULES, "bart": MODULES} | dict.fromkeys(
    ("qwen2_vl", "llava"), MULTIMODAL
)


def inputs_of(architecture: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[10, 11, 12, 13]])
    if architecture == "whisper":
        return {
            "input_features": torch.zeros(1, 8, 40, dtype=torch.bfloat16),
            "decoder_input_ids": ids,
        }
    if architecture in ("t5", "bart"):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_a_sliced_merge_loads_whole_and_computes(
    architecture: str, tiny_tokenizer: Make, tmp_path: Path
) -> None:
    import transformers

    places = save_family(architecture, tmp_path, tiny_tokenizer(), count=3)
    config = tmp_path / "config.yml"
    config.write_text(CONFIGS.get(architecture, SLICED).format(**places))
    recipe = compose([f"output.dir={tmp_path}/work"], recipe_file=config)
    workshop.merge_only(recipe, tmp_path / "out", Progress(quiet=True))
    name, _ = (ARCHITECTURES | MORE_ARCHITECTURES)[architecture]
    model, told = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(told.values()), told
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        assert model(**inputs_of(architecture)).logits.isfinite().all()
    if type(model).__name__.endswith("CausalLM"):
        made = model.generate(
            **inputs_of(architecture), max_new_tokens=2, min_new_tokens=2, do_sample=False
        )
        assert made.shape == (1, 6)
