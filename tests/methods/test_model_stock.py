"""Model Stock against values worked out by hand and the paper's formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes
from torch import Tensor

from mergeops.errors import MergeError
from mergeops.methods.steps.whole import merge_tensors


def stock(base: Tensor, sources: list[Tensor]) -> Tensor:
    """The paper's formula on one vector in float64, bounded at -1."""
    base, sources = base.double(), [source.double() for source in sources]
    n = len(sources)
    cosines = []
    for a, b in itertools.combinations([source - base for source in sources], 2):
        length = float(a.norm() * b.norm())
        cosines.append(float(a @ b) / length if length else 0.0)
    cosine = sum(cosines) / len(cosines)
    below = 1 + (n - 1) * cosine
    t = max(n * cosine / below, -1.0) if below > 0 else -1.0
    return t * sum(sources) / n + (1 - t) * base


@pytest.mark.parametrize("filter_wise", [False, True])
def test_orthogonal_changes_stay_at_the_base(filter_wise: bool) -> None:
    base = torch.tensor([5.0, 5.0])
    sources = [base + torch.tensor([1.0, 0]), base + torch.tensor([0.0, 1])]
    merged = merge_tensors("model_stock", sources, base, {"filter_wise": filter_wise})
    assert merged.tolist() == [5, 5]


@pytest.mark.parametrize("filter_wise", [False, True])
def test_equal_directions_give_the_mean(filter_wise: bool) -> None:
    base = torch.tensor([5.0, 5.0])
    sources = [base + torch.tensor([1.0, 2]), base + torch.tensor([3.0, 6])]
    merged = merge_tensors("model_stock", sources, base, {"filter_wise": filter_wise})
    assert merged.tolist() == pytest.approx([7, 9], rel=1e-6)


def test_half_way_angle_by_hand() -> None:
    """60 degrees: cosine 0.5, t = 2 * 0.5 / 1.5 = 2 / 3."""
    sources = [torch.tensor([1.0, 0]), torch.tensor([0.5, 3**0.5 / 2])]
    merged = merge_tensors("model_stock", sources, torch.zeros(2))
    expected = [2 / 3 * 0.75, 2 / 3 * 3**0.5 / 4]
    assert merged.tolist() == pytest.approx(expected, rel=1e-6)


def test_filters_have_their_own_ratio() -> None:
    base = torch.zeros(2, 2)
    first = torch.tensor([[1.0, 0], [1, 1]])
    second = torch.tensor([[0.0, 1], [1, 1]])
    merged = merge_tensors("model_stock", [first, second], base, {"filter_wise": True})
    assert merged.tolist() == [[0, 0], pytest.approx([1, 1], rel=1e-6)]


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposite_changes_reach_the_bound_not_the_pole(filter_wise: bool) -> None:
    base = torch.tensor([1.0, 1.0])
    sources = [base + torch.tensor([2.0, 0]), base - torch.tensor([1.0, 0])]
    merged = merge_tensors("model_stock", sources, base, {"filter_wise": filter_wise})
    assert merged.tolist() == [1 - 0.5, 1.0]


@pytest.mark.parametrize("filter_wise", [False, True])
def test_small_changes_have_angles_too(filter_wise: bool) -> None:
    sources = [torch.tensor([1e-9, 0]), torch.tensor([1e-9, 0])]
    merged = merge_tensors("model_stock", sources, torch.zeros(2), {"filter_wise": filter_wise})
    assert merged.tolist() == pytest.approx([1e-9, 0], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 30),
    n=st.integers(2, 4),
    still=st.booleans(),
    size=st.sampled_from([1e-8, 1e-2, 1e6]),
    seed=st.integers(0, 1000),
)
def test_model_stock_agrees_with_the_formula(
    rows: int, length: int, n: int, still: bool, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(rows, length)
    common = torch.randn(rows, length, generator=generator)
    sources = [size * (common + torch.randn(rows, length, generator=generator)) for _ in range(n)]
    if still:
        sources[0] = base.clone()
    merged = merge_tensors("model_stock", sources, base)
    expected = stock(base.view(-1), [source.view(-1) for source in sources])
    assert torch.allclose(merged.double().view(-1), expected, rtol=1e-4, atol=1e-6 * size)
    merged = merge_tensors("model_stock", sources, base, {"filter_wise": True})
    for i in range(rows):
        expected = stock(base[i], [source[i] for source in sources])
        assert torch.allclose(merged[i].double(), expected, rtol=1e-4, atol=1e-6 * size)


def test_model_stock_needs_two_sources_and_a_base() -> None:
    base, sources = fine_tunes((5,), 2)
    with pytest.raises(MergeError, match="model_stock takes at least 2 sources, not 1"):
        merge_tensors("model_stock", sources[:1], base)
    with pytest.raises(MergeError, match="model_stock needs a base"):
        merge_tensors("model_stock", sources)
