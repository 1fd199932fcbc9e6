"""Exact selection without sorting, and draws by counter, against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeops.kernels.blocks import BLOCK
from mergeops.methods.steps.randomness import keep_mask, random_key, splitmix64
from mergeops.methods.steps.sparsify import find_cuts, keep_largest

CPU = torch.device("cpu")


def trim(
    source: torch.Tensor,
    density: float,
    step: int = BLOCK,
    passes: list[tuple[int, int | None]] | None = None,
) -> torch.Tensor:
    """By ``find_cuts``; what it goes through is added to ``passes``."""
    base = torch.zeros_like(source)

    def scan(look, start=0, stop=None, *, fused=None):  # type: ignore[no-untyped-def]
        if passes is not None:
            passes.append((start, stop))
        for at in range(start, min(stop or source.numel(), source.numel()), step):
            part = slice(at, min(at + step, stop or source.numel()))
            yield look(base[part], source[None, part], at)

    cuts = find_cuts(scan, [density], source.numel())
    parts = [
        keep_largest(source[None, at : at + step].clone(), cuts, at)
        for at in range(0, source.numel(), step)
    ]
    return torch.cat(parts, 1)[0]


def trim_by_sorting(source: torch.Tensor, density: float) -> torch.Tensor:
    order = np.lexsort((np.arange(source.numel()), -source.abs().numpy()))
    kept = torch.zeros_like(source)
    index = torch.from_numpy(order[: int(density * source.numel())].copy())
    kept[index] = source[index]
    return kept


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3 * BLOCK),
    density=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 5, 1000, 10**9]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_trim_keeps_what_a_stable_sort_keeps(
    n: int, density: float, levels: int, seed: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(n)
    if levels < 10**9:
        values = np.round(values * levels / 3) / levels
    source = torch.from_numpy(values).to(dtype)
    assert trim(source, density).equal(trim_by_sorting(source, density))


def test_trim_handles_magnitudes_from_subnormal_to_largest() -> None:
    source = torch.tensor([1e-45, -3.4e38, 1e-38, 0.0, -0.0, 1e30, -1e-45])
    for k in range(8):
        assert trim(source, k / 7 + 1e-9).equal(trim_by_sorting(source, k / 7 + 1e-9))


@pytest.mark.parametrize("step", [BLOCK, 2 * BLOCK, 7 * BLOCK])
def test_trim_with_ties_does_not_depend_on_chunks(step: int) -> None:
    source = torch.randn(6 * BLOCK + 17, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert trim(source.float(), 0.3, step).equal(trim_by_sorting(source.float(), 0.3))


def test_the_cut_takes_two_passes_and_the_last_tie_one_chunk() -> None:
    source = torch.ones(5 * BLOCK)
    source[: 2 * BLOCK] = 3.0
    passes: list[tuple[int, int | None]] = []
    kept = trim(source, 0.5, BLOCK, passes)
    assert passes == [(0, None), (0, None), (2 * BLOCK, 3 * BLOCK)]
    assert kept.count_nonzero() == kept[: 5 * BLOCK // 2].count_nonzero() == 5 * BLOCK // 2


@pytest.mark.parametrize("most", [1, 40, 200])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.85, 0.999])
def test_a_tensor_of_many_parts_is_remembered_in_longer_ones(
    most: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(-9, 10, (7 * BLOCK + 5,), generator=generator).float()
    passes: list[tuple[int, int | None]] = []
    monkeypatch.setattr("mergeops.methods.steps.selection.MOST_COUNTS", most)
    assert trim(source, density, BLOCK, passes).equal(trim_by_sorting(source, density))
    _, _, (start, stop) = passes
    assert stop is not None and ((stop - start) > BLOCK) == (most == 1)


def test_splitmix64_gives_the_published_stream() -> None:
    """First outputs for seed 0 and 1234567 of the reference C code (prng.di.unimi.it)."""
    zero = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    other = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for seed, expected in ((0, zero), (1234567, other)):
        found = splitmix64(seed, 0, 3, CPU).tolist()
        assert [value % 2**64 for value in found] == expected


def test_draws_do_not_depend_on_where_the_chunk_starts() -> None:
    key = random_key(7, "abc", "model.norm.weight")
    whole = keep_mask(0.3, key, 0, 1001, CPU)
    for start in (2, 500, 1000):
        assert whole[start:].equal(keep_mask(0.3, key, start, 1001 - start, CPU))


def test_draws_have_the_right_frequency_and_no_neighbour_correlation() -> None:
    n = 1 << 20
    for probability in (0.1, 0.5, 0.9):
        drawn = -keep_mask(probability, random_key(0, "s", "t"), 0, n, CPU).double()
        spread = (probability * (1 - probability) / n) ** 0.5
        assert abs(drawn.mean() - probability) < 5 * spread
        centred = drawn - probability
        for lag in (1, 2, 3):
            correlation = (centred[lag:] * centred[:-lag]).mean() / (spread**2 * n)
            assert abs(correlation) < 5 / n**0.5


def test_keys_differ_by_seed_source_and_tensor() -> None:
    keys = {random_key(s, d, t) for s in (0, 1, 11) for d in ("a", "1a") for t in ("x", "y")}
    assert len(keys) == 12
