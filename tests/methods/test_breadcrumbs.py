"""Breadcrumbs and breadcrumbs with TIES."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import exact, fine_tunes
from torch import Tensor

from mergeops.errors import ConfigError
from mergeops.methods.steps.whole import merge_tensors

BOTH = ["breadcrumbs", "breadcrumbs_ties"]


def trim_by_sorting(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Smallest first, the later of two equals being smaller; drop from both ends."""
    numel = delta.numel()
    kept = int(density * numel)
    top = min(int(gamma * numel), numel - kept)
    order = sorted(range(numel), key=lambda i: (-abs(delta.view(-1)[i].item()), i))
    trimmed = torch.zeros(numel, dtype=delta.dtype)
    for i in order[top : top + kept]:
        trimmed[i] = delta.view(-1)[i]
    return trimmed.view(delta.shape)


def vote(deltas: list[Tensor], weights: list[float], normalize: bool) -> Tensor:
    """TIES, entry by entry."""
    merged = torch.zeros(deltas[0].numel(), dtype=torch.float64)
    for i in range(merged.numel()):
        votes = [w * d.view(-1)[i].item() for d, w in zip(deltas, weights, strict=True)]
        sign = 1.0 if sum(votes) >= 0 else -1.0
        agree = [(v, w) for v, w in zip(votes, weights, strict=True) if v * sign > 0]
        total = sum(v for v, _ in agree)
        merged[i] = total / sum(w for _, w in agree) if normalize and agree else total
    return merged.view(deltas[0].shape)


@pytest.mark.parametrize("name", BOTH)
def test_largest_and_smallest_changes_are_dropped(name: str) -> None:
    base = torch.full((10,), 100.0)
    change = torch.tensor([5.0, -1, 9, 2, -3, 8, 4, -10, 6, 7])
    # 2 of 10 largest fall (9, -10); 5 of the others stay: 8, 7, 6, 5, 4.
    parameters = {"density": 0.5, "gamma": 0.2, "weight": 1.0}
    merged = merge_tensors(name, [base + change], base, parameters)
    assert (merged - base).tolist() == [5, 0, 0, 0, 0, 8, 4, 0, 6, 7]


@pytest.mark.parametrize("name", BOTH)
def test_gamma_of_zero_drops_no_outlier(name: str) -> None:
    base = torch.zeros(4)
    source = torch.tensor([1.0, -4, 3, 2])
    merged = merge_tensors(name, [source], base, {"density": 0.5, "gamma": 0.0, "weight": 1.0})
    assert merged.tolist() == [0, -4, 3, 0]


@pytest.mark.parametrize("name", BOTH)
def test_a_tensor_too_small_for_an_outlier_has_none(name: str) -> None:
    """50 entries, and gamma 0.01 is half an entry."""
    base, (source,) = fine_tunes((50,), 1)
    merged = merge_tensors(name, [source], base, {"density": 1.0, "weight": 1.0})
    assert merged.equal(source)


@pytest.mark.parametrize("name", BOTH)
def test_density_wins_over_gamma(name: str) -> None:
    base = torch.zeros(4)
    source = torch.tensor([1.0, -4, 3, 2])
    merged = merge_tensors(name, [source], base, {"density": 0.75, "gamma": 0.9, "weight": 1.0})
    assert merged.tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("name", BOTH)
def test_rescale_keeps_the_norm(name: str) -> None:
    base = torch.zeros(4)
    source = torch.tensor([1.0, -4, 3, 2])
    parameters = {"density": 0.5, "gamma": 0.25, "weight": 1.0, "rescale": True}
    merged = merge_tensors(name, [source], base, parameters)
    assert merged.tolist() == [0, 0, 6, 4]


@settings(max_examples=40, deadline=None)
@given(
    numel=st.integers(1, 60),
    densities=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    gammas=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    weights=st.lists(st.floats(0.1, 2), min_size=2, max_size=2),
    normalize=st.booleans(),
    rescale=st.booleans(),
    levels=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 1000),
)
def test_both_agree_with_a_merge_by_sorting(
    numel: int,
    densities: list[float],
    gammas: list[float],
    weights: list[float],
    normalize: bool,
    rescale: bool,
    levels: int,
    seed: int,
) -> None:
    """Few levels make many equal magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(numel)
    sources = [
        torch.round(torch.randn(numel, generator=generator) * levels) / levels for _ in range(2)
    ]
    trimmed = [
        trim_by_sorting(s, d, g) for s, d, g in zip(exact(sources), densities, gammas, strict=True)
    ]
    if rescale:
        trimmed = [
            t * (s.double().abs().sum() / t.abs().sum()) if t.abs().sum() > 0 else t
            for s, t in zip(sources, trimmed, strict=True)
        ]
    per_source = {"density": densities, "gamma": gammas, "weight": weights}
    parameters = {"normalize": normalize, "rescale": rescale, "scale": 0.7}
    added = sum(w * t for w, t in zip(weights, trimmed, strict=True))
    linear = added / sum(weights) if normalize else added
    merged = merge_tensors("breadcrumbs", sources, base, parameters, per_source)
    assert torch.allclose(merged.double(), 0.7 * linear, rtol=1e-5, atol=1e-5)
    merged = merge_tensors("breadcrumbs_ties", sources, base, parameters, per_source)
    expected = 0.7 * vote(trimmed, weights, normalize)
    # Where the weighted votes cancel but for rounding, either sign is right.
    clear = added.abs() > 1e-5
    assert torch.allclose(merged.double()[clear], expected[clear], rtol=1e-5, atol=1e-5)


def test_breadcrumbs_refuse_to_normalize_weights_that_cancel() -> None:
    base, sources = fine_tunes((5,), 2)
    with pytest.raises(ConfigError, match=r"add up to 0, which breadcrumbs cannot normalize"):
        merge_tensors("breadcrumbs", sources, base, {"normalize": True}, {"weight": [1, -1]})


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("key", ["density", "gamma"])
def test_shares_outside_0_to_1_are_refused(name: str, key: str) -> None:
    base, sources = fine_tunes((5,), 1)
    with pytest.raises(ConfigError, match=f"method.{key} is 1.5; allowed: from 0 to 1"):
        merge_tensors(name, sources, base, {key: 1.5})
    with pytest.raises(ConfigError, match=f"method.{key} is -0.5; allowed: from 0 to 1"):
        merge_tensors(name, sources, base, {}, {key: [-0.5]})
