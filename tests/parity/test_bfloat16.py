"""bfloat16 in, bfloat16 out: never further from exact arithmetic than mergekit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.mergekit_oracle import Case, Pair, merge_ours, tensors_of

pytestmark = pytest.mark.parity

Make = Callable[..., Any]
PAIR = "models: [{model: {base}}, {model: {a}}]\nbase_model: {base}\n"
THREE = """
models:
  - {model: {a}, parameters: {weight: 0.3, density: 0.6}}
  - {model: {b}, parameters: {weight: 0.5, density: 0.5}}
  - {model: {c}, parameters: {weight: 0.4, density: 0.5}}
base_model: {base}
"""
PLAIN = "models: [{model: {base}}, {model: {a}}, {model: {b}}, {model: {c}}]\nbase_model: {base}\n"
WEIGHTED = THREE.replace(", density: 0.6", "").replace(", density: 0.5", "")
SOURCES = WEIGHTED.replace("base_model: {base}\n", "")
CONFIGS = {
    "linear": SOURCES,
    "slerp": PAIR + "parameters: {t: 0.4}\n",
    "nuslerp": "models: [{model: {a}, parameters: {weight: 0.3}}, "
    "{model: {b}, parameters: {weight: 0.5}}]\n",
    "multislerp": SOURCES,
    "karcher": PLAIN.replace("base_model: {base}\n", ""),
    "task_arithmetic": WEIGHTED,
    "ties": THREE,
    "breadcrumbs": THREE,
    "model_stock": PLAIN,
    "sce": PLAIN,
    "nearswap": PAIR + "parameters: {t: 0.01}\n",
    "ram": PLAIN + "parameters: {epsilon: 0.01}\n",
}
CASES = [
    Case(name, f"merge_method: {name}\n{config}dtype: bfloat16\n", dtype="bfloat16")
    for name, config in CONFIGS.items()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_error_is_never_larger_than_mergekits(
    case: Case, pair: Pair, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    import torch

    ours, theirs = tensors_of(merge_ours(pair, tmp_path / "ours")), tensors_of(pair.mergekit)
    exact = tensors_of(_exact(pair, tmp_path))
    errors = [0.0, 0.0]
    for name, reference in exact.items():
        scale = float(reference.abs().max()) or 1.0
        for i, result in enumerate((ours, theirs)):
            error = (result[name].double() - reference.double()) / scale
            errors[i] += float(error.square().sum())
        assert ours[name].dtype == torch.bfloat16
    record_property("ours", errors[0] ** 0.5)
    record_property("mergekit", errors[1] ** 0.5)
    assert errors[0] <= errors[1]


def _exact(pair: Pair, folder: Path) -> Path:
    """The same merge in float64, saved in float32."""
    from mergeops import workshop
    from mergeops.progress import Progress
    from mergeops.recipe import composition as compose

    config = folder / "exact.yml"
    config.write_text(pair.config.read_text().replace("bfloat16", "float32"))
    work = f"output.dir={folder / 'work'}"
    recipe = compose.compose([work, "dtype.compute=float64"], recipe_file=config)
    assert replace(recipe.dtype, save="float32") == recipe.dtype
    workshop.merge_only(recipe, folder / "exact", Progress(quiet=True))
    return folder / "exact"
