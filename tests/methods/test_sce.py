"""SCE against values worked out by hand and an entry-by-entry reference."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes
from torch import Tensor

from mergeops.errors import ConfigError
from mergeops.methods.steps.whole import merge_tensors


def sce(base: Tensor, sources: list[Tensor], topk: float) -> Tensor:
    """The paper's three steps with numpy-like float64 on whole tensors."""
    deltas = torch.stack([(s - base).double().view(-1) for s in sources])
    if topk < 1:
        variance = deltas.var(dim=0, unbiased=False).float()
        variance[(deltas == deltas[0]).all(dim=0)] = 0.0
        k = int(Decimal(str(topk)) * int((variance > 0).sum()))
        order = sorted(range(variance.numel()), key=lambda i: (-variance[i].item(), i))
        selected = torch.zeros(variance.numel(), dtype=torch.bool)
        selected[order[:k]] = True
        deltas = deltas * selected
    energy = (deltas**2).mean(dim=1)
    weights = energy / energy.sum() if energy.sum() > 0 else torch.ones_like(energy) / len(energy)
    merged = torch.zeros(deltas.shape[1], dtype=torch.float64)
    for i, column in enumerate(deltas.T):
        sign = 1.0 if column.sum() >= 0 else -1.0
        agree = column * sign > 0
        if agree.any():
            merged[i] = (column * weights)[agree].sum() / weights[agree].sum()
    return base.double() + merged.view(base.shape)


def test_a_source_counts_by_its_squared_change() -> None:
    base = torch.zeros(2)
    sources = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])]
    merged = merge_tensors("sce", sources, base)
    # Energies 1 and 9: weights 0.1 and 0.9.
    assert merged.tolist() == pytest.approx([2.8, 2.8], rel=1e-6)


def test_small_changes_are_weighted_as_large_ones_are() -> None:
    """Weights have no unit: a millionth of the change gives a millionth of the result."""
    base = torch.zeros(2)
    sources = [torch.tensor([1e-6, 1e-6]), torch.tensor([3e-6, 3e-6])]
    merged = merge_tensors("sce", sources, base)
    assert merged.tolist() == pytest.approx([2.8e-6, 2.8e-6], rel=1e-6)


def test_entries_of_the_minority_sign_are_erased() -> None:
    base = torch.zeros(2)
    sources = [torch.tensor([2.0, 2.0]), torch.tensor([-1.0, 1.0]), torch.tensor([2.0, -4.0])]
    merged = merge_tensors("sce", sources, base)
    # Energies 8, 2, 20; first entry: 2 and 2 agree; second: 2 + 1 - 4 < 0, only -4.
    assert merged.tolist() == pytest.approx([2.0, -4.0], rel=1e-6)


def test_the_sign_is_elected_by_plain_sums_not_by_weight() -> None:
    base = torch.zeros(2)
    sources = [torch.tensor([1.5, 0.0]), torch.tensor([-1.0, 9.0])]
    # By weight -1 would win (82 against 2.25); the plain sum is +0.5.
    assert merge_tensors("sce", sources, base).tolist() == pytest.approx([1.5, 9.0], rel=1e-6)


def test_only_entries_of_largest_variance_are_selected() -> None:
    base = torch.zeros(5)
    sources = [torch.tensor([1.0, 2, 3, 4, 7]), torch.tensor([1.0, 3, 5, 7, 7])]
    # Sources differ in 3 entries; two thirds of them are the last two of those.
    merged = merge_tensors("sce", sources, base, {"select_topk": 0.67})
    assert merged[:2].tolist() == [0, 0] and merged[4] == 0
    assert merged[2] > 3 and merged[3] > 4


def test_topk_counts_in_decimals() -> None:
    """0.29 * 100 is 28.999999999999996 in binary."""
    base = torch.zeros(100)
    sources = [torch.zeros(100), torch.arange(1.0, 101.0)]
    merged = merge_tensors("sce", sources, base, {"select_topk": 0.29})
    assert merged.count_nonzero() == 29


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 2)])
def test_topk_of_zero_is_the_base_in_its_shape(shape: tuple[int, ...]) -> None:
    base, sources = fine_tunes(shape, 3)
    assert merge_tensors("sce", sources, base, {"select_topk": 0.0}).equal(base)


def test_sources_that_agree_everywhere_select_nothing() -> None:
    base = torch.zeros(3)
    source = torch.tensor([0.1, 0.7, -0.3])
    merged = merge_tensors("sce", [source] * 3, base, {"select_topk": 0.5})
    assert merged.equal(base)


def test_a_source_that_is_far_smaller_than_another_is_not_lost() -> None:
    base = torch.zeros(2)
    sources = [torch.tensor([1e-20, 0.0]), torch.tensor([0.0, 1e6])]
    merged = merge_tensors("sce", sources, base)
    assert merged.tolist() == pytest.approx([1e-20, 1e6], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=0, max_size=3),
    n=st.integers(1, 4),
    topk=st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.99, 1.0]),
    size=st.sampled_from([1e-8, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_sce_agrees_with_an_entry_by_entry_reference(
    shape: list[int], n: int, topk: float, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(shape)
    sources = [torch.randn(shape, generator=generator) * size for _ in range(n)]
    merged = merge_tensors("sce", sources, base, {"select_topk": topk})
    expected = sce(base, sources, topk)
    assert torch.allclose(merged.double(), expected, rtol=1e-5, atol=1e-6 * size)


def test_topk_outside_0_to_1_is_refused() -> None:
    base, sources = fine_tunes((5,), 2)
    with pytest.raises(ConfigError, match=r"method.select_topk is 1.2; allowed: from 0 to 1"):
        merge_tensors("sce", sources, base, {"select_topk": 1.2})
