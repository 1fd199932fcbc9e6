"""DELLA: drops by rank, their laws, and the ranks themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes

from mergeops.errors import ConfigError
from mergeops.methods.steps.randomness import draws
from mergeops.methods.steps.ranks import drop_by_rank, twice_ranks
from mergeops.methods.steps.whole import merge_tensors

BOTH = ["della", "della_linear"]


def kept_share(row: torch.Tensor, density: float, epsilon: float, times: int) -> torch.Tensor:
    """How often each entry of a row stays in many rows of it."""
    rows = row.repeat(times, 1)
    kept = drop_by_rank(
        rows.view(1, -1), [density], [epsilon], [12345], 0, row.numel(), rescale=False
    )
    return (kept.view(rows.shape) != 0).double().mean(dim=0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 40),
    levels=st.sampled_from([1, 3, 10**6]),
    wide=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equal_keys_share_their_mean_rank(
    rows: int, length: int, levels: int, wide: bool, seed: int
) -> None:
    keys = np.random.default_rng(seed).integers(0, levels, (rows, length))
    below = (keys[:, None, :] < keys[:, :, None]).sum(axis=2)
    equal = (keys[:, None, :] == keys[:, :, None]).sum(axis=2)
    expected = 2 * below + equal - 1
    dtype = torch.int64 if wide else torch.int32
    assert twice_ranks(torch.from_numpy(keys).to(dtype)).tolist() == expected.tolist()


@pytest.mark.parametrize("start", [1, 2, 333, 1000])
def test_draws_may_start_anywhere(start: int) -> None:
    """Rows of odd length begin at odd entries."""
    whole = draws(42, 0, 1001, torch.device("cpu"))
    assert whole.min() >= 0
    assert whole[start:].equal(draws(42, start, 1001 - start, torch.device("cpu")))


def test_larger_entries_stay_more_often() -> None:
    times = 20_000
    row = torch.tensor([3.0, -1.0, 2.0, -5.0, 4.0])
    share = kept_share(row, 0.5, 0.2, times)
    expected = torch.tensor([0.5, 0.3, 0.4, 0.7, 0.6], dtype=torch.float64)
    assert (share - expected).abs().max() < 5 * math.sqrt(0.25 / times)


def test_equal_entries_stay_equally_often() -> None:
    times = 20_000
    share = kept_share(torch.ones(4), 0.5, 0.2, times)
    assert (share - 0.5).abs().max() < 5 * math.sqrt(0.25 / times)


@pytest.mark.parametrize(("density", "lowest", "highest"), [(0.9, 0.8, 1.0), (0.1, 0.0, 0.2)])
def test_epsilon_gives_way_near_the_ends(density: float, lowest: float, highest: float) -> None:
    """The default 0.15 does not fit; the mean stays the density."""
    times = 20_000
    share = kept_share(torch.tensor([1.0, 2.0]), density, 0.15, times)
    expected = torch.tensor([lowest, highest], dtype=torch.float64)
    assert (share - expected).abs().max() < 5 * math.sqrt(0.25 / times)


def test_a_row_of_one_entry_stays_with_the_density() -> None:
    times = 20_000
    share = kept_share(torch.tensor([2.0]), 0.3, 0.15, times)
    assert abs(share.item() - 0.3) < 5 * math.sqrt(0.21 / times)


@pytest.mark.parametrize("name", BOTH)
def test_ranks_are_those_of_the_rows(name: str) -> None:
    """All of the first row is small, but its larger half stays as often as the second row's."""
    base = torch.zeros(2, 10_000)
    row = torch.linspace(1.0, 2.0, 10_000)
    source = torch.stack([0.001 * row, row])
    parameters = {"density": 0.5, "epsilon": 0.4, "weight": 1.0, "rescale": False}
    kept = merge_tensors(name, [source], base, parameters) != 0
    small = kept[:, :5000].double().mean(dim=1)
    large = kept[:, 5000:].double().mean(dim=1)
    assert (small - 0.3).abs().max() < 0.04 and (large - 0.7).abs().max() < 0.04


@pytest.mark.parametrize("name", BOTH)
def test_rescale_divides_each_entry_by_its_probability(name: str) -> None:
    base = torch.zeros(1, 3)
    row = torch.tensor([[1.0, 2.0, 4.0]])
    seen: set[tuple[float, ...]] = set()
    for seed in range(60):
        parameters = {"density": 0.5, "epsilon": 0.25, "weight": 1.0}
        merged = merge_tensors(name, [row], base, parameters, seed=seed)
        seen.add(tuple(merged[0].tolist()))
    whole = [1 / 0.25, 2 / 0.5, 4 / 0.75]
    for i in range(3):
        values = sorted({found[i] for found in seen})
        assert values == [0.0, pytest.approx(whole[i], rel=1e-6)]


@pytest.mark.parametrize("name", BOTH)
def test_the_mean_over_seeds_is_the_whole_change(name: str) -> None:
    base = torch.zeros(4, 500)
    source = torch.ones(4, 500) + torch.rand(4, 500, generator=torch.Generator().manual_seed(0))
    merged = torch.stack(
        [
            merge_tensors(name, [source], base, {"density": 0.6, "weight": 1.0}, seed=seed)
            for seed in range(50)
        ]
    )
    assert (merged.double() / source).mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", [*BOTH, "dare_linear", "dare_ties"])
def test_match_norm_keeps_the_norm_exactly(name: str) -> None:
    base, (source,) = fine_tunes((30, 40), 1)
    parameters = {"density": 0.4, "weight": 1.0, "match_norm": True}
    change = merge_tensors(name, [source], torch.zeros_like(base), parameters)
    assert change.count_nonzero() == pytest.approx(0.4 * 1200, abs=100)
    assert change.abs().sum().item() == pytest.approx(source.abs().sum().item(), rel=1e-5)
    ratio = (change / source)[change != 0]
    assert (ratio.max() - ratio.min()).item() < 1e-5


@pytest.mark.parametrize("name", BOTH)
def test_density_zero_is_the_base_and_one_drops_nothing(name: str) -> None:
    base, (source,) = fine_tunes((6, 5), 1)
    assert merge_tensors(name, [source], base, {"density": 0.0}).equal(base)
    merged = merge_tensors(name, [source], base, {"density": 1.0, "weight": 1.0})
    assert merged.equal(base + (source - base))


def test_della_votes_and_averages_who_agrees() -> None:
    base = torch.zeros(1, 3)
    sources = [torch.tensor([[3.0, 1, 2]]), torch.tensor([[1.0, -4, 0]])]
    merged = merge_tensors("della", sources, base, {"density": 1.0}, {"weight": [1, 3]})
    assert merged.tolist() == [[(3 + 3) / 4, -4, 2]]


def test_della_linear_adds_or_averages() -> None:
    base = torch.zeros(1, 2)
    sources = [torch.tensor([[3.0, 1]]), torch.tensor([[1.0, -4]])]
    weights = {"weight": [1.0, 3.0]}
    merged = merge_tensors("della_linear", sources, base, {"density": 1.0}, weights)
    assert merged.tolist() == [[6, -11]]
    parameters = {"density": 1.0, "normalize": True, "scale": 2.0}
    merged = merge_tensors("della_linear", sources, base, parameters, weights)
    assert merged.tolist() == [[3, -5.5]]
    with pytest.raises(ConfigError, match=r"della_linear cannot normalize; .*normalize=false"):
        merge_tensors("della_linear", sources, base, parameters, {"weight": [2, -2]})


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("key", ["density", "epsilon"])
def test_values_outside_0_to_1_are_refused(name: str, key: str) -> None:
    base, sources = fine_tunes((5,), 1)
    with pytest.raises(ConfigError, match=f"method.{key} is 1.5; allowed: from 0 to 1"):
        merge_tensors(name, sources, base, {key: 1.5})


@pytest.mark.parametrize("name", [*BOTH, "dare_linear", "dare_ties"])
def test_matching_norms_without_rescaling_is_refused(name: str) -> None:
    base, sources = fine_tunes((5,), 1)
    with pytest.raises(ConfigError, match=r"match_norm is true, but method.rescale is false"):
        merge_tensors(name, sources, base, {"match_norm": True, "rescale": False})
