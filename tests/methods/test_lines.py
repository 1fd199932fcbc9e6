"""LiNeS: the paper's factor of each layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeops.engine import merge
from mergeops.methods.steps.whole import merge_tensors

Make = Callable[..., Any]


def test_factors_grow_with_the_layers_and_stay_outside_of_them(
    plan_of: Make, tiny_llama: Make, tmp_path: Path
) -> None:
    base = tiny_llama(layers=4)
    sources = {name: tiny_llama(like=base, seed=i) for i, name in enumerate("abc", 1)}
    method = {"name": "lines", "alpha": 0.9, "beta": 0.6}
    plan = plan_of(method, base, sources, parameters={"c": {"weight": 0.5}})
    merged = load_file(merge(plan, tmp_path / "out") / "model.safetensors")
    before = load_file(base / "model.safetensors")
    tuned = [load_file(path / "model.safetensors") for path in sources.values()]
    # lambda of layers 1 to 4: alpha + beta (l - 1) / (L - 1), alpha being 0.9 over 3 tasks.
    factors = {".0.": 0.3, ".1.": 0.5, ".2.": 0.7, ".3.": 0.9}
    for name, found in merged.items():
        total = sum(
            weight * (weights[name].double() - before[name].double())
            for weight, weights in zip((1.0, 1.0, 0.5), tuned, strict=True)
        )
        factor = next((f for layer, f in factors.items() if layer in name), 0.3)
        assert torch.allclose(found.double(), before[name].double() + factor * total, atol=1e-6)


@pytest.mark.parametrize(("depth", "factor"), [(None, 0.4), (0.0, 0.4), (0.5, 0.7), (1.0, 1.0)])
def test_one_task_with_the_papers_beta_keeps_its_last_layer(
    depth: float | None, factor: float
) -> None:
    source = torch.tensor([1.0, -2.0])
    parameters = {"alpha": 0.4, "beta": 0.6}
    merged = merge_tensors("lines", [source], torch.zeros(2), parameters, depth=depth)
    assert torch.allclose(merged, factor * source)
