"""Random methods: other draws than mergekit's, by the same laws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mergekit_oracle import Case, tensors_of

pytestmark = pytest.mark.parity

Make = Callable[..., Any]
CONFIG = """
merge_method: METHOD
models:
  - {model: {a}, parameters: {weight: 1.0, density: DENSITY}}
base_model: {base}
parameters: {rescale: RESCALE, normalize: false}
dtype: float32
"""
DARE = ("dare_linear", "dare_ties")
DELLA = ("della", "della_linear")


def _case(method: str, density: float, rescale: bool, *, compat: bool = False) -> Case:
    config = CONFIG.replace("METHOD", method).replace("DENSITY", str(density))
    config = config.replace("RESCALE", str(rescale).lower())
    return Case(f"{method}-{density}-{rescale}", config, seed=3, compat=compat)


PLAIN = [_case(m, d, False) for m in (*DARE, *DELLA) for d in (0.3, 0.7)]
RESCALED = [_case(m, d, True, compat=True) for m in DARE for d in (0.3, 0.7)]
INVERSE = [_case(m, d, True) for m in DARE for d in (0.3, 0.7)]


def changes(
    merged: tuple[dict[str, Any], dict[str, Any]], places: dict[str, Path]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All changes of matrices in one row: the source's, ours and mergekit's."""
    base, source = (tensors_of(places[name]) for name in ("base", "a"))
    names = [name for name, tensor in base.items() if tensor.dim() == 2]
    flat = [
        torch.cat([(weights[name] - base[name]).flatten() for name in names]).double()
        for weights in (source, *merged)
    ]
    return flat[0], flat[1], flat[2]


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_as_many_entries_are_kept_and_they_are_the_sources(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]], family: Make
) -> None:
    density = float(case.name.split("-")[1])
    full, *both = changes(merged, family(case.architecture, case.dtype, case.models))
    for change in both:
        kept = change.abs() > 1e-7
        # Five standard deviations of a count of so many draws.
        spread = 5 * (density * (1 - density) / full.numel()) ** 0.5
        assert abs(float(kept.double().mean()) - density) < spread + 1e-4
        torch.testing.assert_close(change[kept], full[kept], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in PLAIN if "della" in c.name], ids=lambda c: c.name)
def test_larger_changes_are_kept_more_often_and_as_often(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]], family: Make
) -> None:
    full, *both = changes(merged, family(case.architecture, case.dtype, case.models))
    thirds = full.abs().argsort().tensor_split(3)
    shares = [[float((c[t].abs() > 1e-7).double().mean()) for t in thirds] for c in both]
    for ours, theirs in zip(*shares, strict=True):
        assert abs(ours - theirs) < 0.02
    assert shares[0][0] + 0.1 < shares[0][1] < shares[0][2] - 0.05


@pytest.mark.parametrize("case", RESCALED, ids=lambda case: case.name)
def test_rescaling_for_compatibility_keeps_each_tensors_norm(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]], family: Make
) -> None:
    places = family(case.architecture, case.dtype, case.models)
    base, source = (tensors_of(places[name]) for name in ("base", "a"))
    for result in merged:
        for name, start in base.items():
            if start.dim() == 2:
                wanted = (source[name] - start).abs().sum()
                torch.testing.assert_close(
                    (result[name] - start).abs().sum(), wanted, rtol=1e-4, atol=0
                )


@pytest.mark.parametrize("case", INVERSE, ids=lambda case: case.name)
def test_rescaling_keeps_the_expectation(
    case: Case, merged: tuple[dict[str, Any], dict[str, Any]], family: Make
) -> None:
    """Ours divides by the density, mergekit by what the norm lost: the same, but for the draws."""
    density = float(case.name.split("-")[1])
    full, ours, theirs = changes(merged, family(case.architecture, case.dtype, case.models))
    kept = ours.abs() > 1e-7
    torch.testing.assert_close(ours[kept], full[kept] / density, rtol=1e-4, atol=1e-6)
    for change in (ours, theirs):
        ratio = float((change * full).sum() / (full * full).sum())
        assert abs(ratio - 1) < 0.03
