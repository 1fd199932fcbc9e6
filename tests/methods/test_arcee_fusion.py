"""Arcee Fusion against a reference by sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes
from torch import Tensor

from mergeops.errors import MergeError
from mergeops.methods.steps.whole import merge_tensors


def importances(source: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """Importance of each entry and the threshold, in float64 and by sorting."""
    p, q = source.double(), base.double()
    ours, theirs = p.softmax(dim=-1) + 1e-8, q.softmax(dim=-1) + 1e-8
    divergence = (ours * (ours / theirs).log()).sum(dim=-1, keepdim=True)
    importance = (p - q).abs() * divergence
    ranked = importance.view(-1).sort().values
    low, median, high = (ranked[int(share * (len(ranked) - 1))] for share in (0.25, 0.5, 0.75))
    return importance, float(median + 1.5 * (high - low))


def test_only_changes_beyond_the_fence_are_taken_over() -> None:
    base = torch.zeros(9)
    source = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 30]) / 10
    # One row: importance is the change times a constant. Median 5, quartiles 3 and 7: fence 11.
    assert merge_tensors("arcee_fusion", [source], base).tolist() == [0] * 8 + [3.0]


def test_a_change_at_the_fence_is_taken_over() -> None:
    base = torch.zeros(9)
    source = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 11, 30]) / 8
    merged = merge_tensors("arcee_fusion", [source], base)
    assert merged.tolist() == [0] * 7 + [11 / 8, 30 / 8]


def test_rows_that_diverge_more_are_more_important() -> None:
    """All rows change one entry by the same size; in the last row it tips the softmax."""
    base = torch.zeros(8, 4)
    base[:7, 0] = -20.0
    source = base.clone()
    source[:, 0] += 1.0
    merged = merge_tensors("arcee_fusion", [source], base)
    assert merged[7].equal(source[7])


def test_rows_of_one_entry_diverge_by_nothing() -> None:
    """No importance anywhere: everything is at the fence."""
    base, (source,) = fine_tunes((6, 1), 1)
    assert merge_tensors("arcee_fusion", [source], base).equal(source)


def test_close_models_are_not_lost_in_rounding() -> None:
    """Divergences near 1e-9 need float64: float32 sums are off by more than that."""
    base, (source,) = fine_tunes((64, 300), 1, noise=1e-4)
    base, source = base.float(), base + 1e-4 * torch.randn(64, 300)
    merged = merge_tensors("arcee_fusion", [source], base)
    importance, threshold = importances(source, base)
    clear = (importance / threshold - 1).abs() > 1e-4
    expected = torch.where(importance >= threshold, source, base)
    assert merged[clear].equal(expected[clear])
    assert clear.float().mean() > 0.99


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    size=st.sampled_from([1e-2, 1.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_fusion_agrees_with_a_reference_by_sorting(
    shape: list[int], size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * size
    source = base + torch.randn(shape, generator=generator) * size
    merged = merge_tensors("arcee_fusion", [source], base)
    assert ((merged == source) | (merged == base)).all()
    importance, threshold = importances(source, base)
    clear = (importance - threshold).abs() > 1e-4 * threshold
    if threshold > 0:
        expected = torch.where(importance >= threshold, source, base)
        assert merged[clear].equal(expected[clear])


def test_fusion_takes_exactly_one_source() -> None:
    base, sources = fine_tunes((5,), 2)
    with pytest.raises(MergeError, match="arcee_fusion takes exactly 1 source, not 2"):
        merge_tensors("arcee_fusion", sources, base)
