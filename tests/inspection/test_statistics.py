"""Statistics of task vectors against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mergeops.inspection.effective_rank import RankMeter, effective_rank
from mergeops.inspection.moments import Moments

BASE = torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.float64)
CHANGES = torch.tensor(
    [[3.0, 0.0, 0.0, 4.0], [1.0, 2.0, 0.0, -2.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64
)


def moments(*, has_base: bool = True) -> Moments:
    return Moments.of(BASE, BASE + CHANGES, has_base=has_base)


def test_norms_are_euclidean_and_relative_to_the_base() -> None:
    seen = moments()
    assert [seen.norm(i) for i in range(3)] == [5.0, 3.0, 1.0]
    assert [seen.relative_norm(i) for i in range(3)] == [1.0, 0.6, 0.2]
    assert [seen.changed(i) for i in range(3)] == [0.5, 0.75, 0.25]


def test_cosines_are_those_of_the_changes() -> None:
    seen = moments()
    assert seen.cosine(0, 1) == pytest.approx((3 - 8) / 15, abs=1e-15)
    assert seen.cosine(1, 2) == pytest.approx(2 / 3, abs=1e-15)
    assert seen.cosine(0, 2) == 0.0


def test_distances_are_between_the_sources() -> None:
    # (3, 0, 0, 4) - (1, 2, 0, -2) = (2, -2, 0, 6)
    assert moments().distance(0, 1) == pytest.approx(math.sqrt(44), abs=1e-14)


def test_a_sign_conflict_is_a_share_of_what_both_changed() -> None:
    seen = moments()
    # 0 and 1 both changed the first entry alike and the last in opposite directions.
    assert seen.sign_conflict(0, 1) == 0.5
    assert seen.sign_conflict(1, 2) == 0.0
    assert seen.sign_conflict(0, 2) is None
    # Three entries have several changes; one of them a conflict.
    assert (seen.contested, seen.in_conflict) == (3, 1)
    assert seen.any_sign_conflict() == pytest.approx(1 / 3)


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    sources = BASE + CHANGES
    parts = [Moments.of(BASE[c], sources[:, c], has_base=True) for c in (slice(0, 1), slice(1, 4))]
    joined, whole = parts[0] + parts[1], moments()
    assert torch.equal(joined.gram, whole.gram)
    assert torch.equal(joined.opposed, whole.opposed)
    assert (joined.entries, joined.contested, joined.in_conflict) == (4, 3, 1)


def test_without_a_base_cosines_are_of_the_weights_and_changes_are_not_defined() -> None:
    sources = BASE + CHANGES
    seen = Moments.of(sources[0], sources, has_base=False)
    # (6, 0, 4, 4) and (4, 2, 4, -2)
    assert seen.norm(0) == pytest.approx(math.sqrt(68))
    assert seen.norm(1) == pytest.approx(math.sqrt(40))
    assert seen.cosine(0, 1) == pytest.approx((24 + 16 - 8) / math.sqrt(68 * 40))
    assert seen.distance(0, 1) == pytest.approx(math.sqrt(44))
    assert seen.relative_norm(0) is seen.changed(0) is None
    assert seen.sign_conflict(0, 1) is seen.any_sign_conflict() is None


def test_distances_of_close_models_do_not_drown_in_their_size() -> None:
    first = torch.full((1000,), 1e4, dtype=torch.float64)
    other = first.clone()
    other[7] += 2.0**-20
    seen = Moments.of(first, torch.stack([first, other]), has_base=False)
    assert seen.distance(0, 1) == 2.0**-20


def test_float32_would_not_do() -> None:
    base = torch.zeros(1 << 20, dtype=torch.float64)
    changes = torch.full((1, 1 << 20), 0.1, dtype=torch.float64)
    norm = Moments.of(base, changes, has_base=True).norm(0)
    assert norm == pytest.approx(102.4, rel=1e-11)


def test_a_source_that_did_not_change_has_no_cosine() -> None:
    seen = Moments.of(BASE, torch.stack([BASE, BASE + CHANGES[0]]), has_base=True)
    assert (seen.norm(0), seen.cosine(0, 1)) == (0.0, None)


def test_what_is_no_number_is_none() -> None:
    broken = BASE + CHANGES
    broken[0, 0] = math.nan
    seen = Moments.of(BASE, broken, has_base=True)
    assert seen.norm(0) is seen.cosine(0, 1) is seen.distance(0, 1) is None
    assert seen.norm(1) == 3.0


def entropy_rank(*values: float) -> float:
    """exp of the entropy, with Python's own floats."""
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares))


def test_the_effective_rank_is_the_exponential_of_the_entropy() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3.0)
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0])) == pytest.approx(entropy_rank(3, 1))
    assert effective_rank(torch.zeros(3)) is None


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_rows_in_pieces_give_the_rank_of_the_whole(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    meter = RankMeter(*shape)
    for start in range(0, shape[0], 2):
        meter.add(matrix[start : start + 2])
    wanted = entropy_rank(*torch.linalg.svdvals(matrix).tolist())
    assert meter.value() == pytest.approx(wanted, rel=1e-9)


def test_noise_of_a_low_rank_change_does_not_count() -> None:
    u = torch.linalg.qr(torch.randn(300, 2, dtype=torch.float64))[0]
    meter = RankMeter(300, 300)
    meter.add((u * torch.tensor([3.0, 1.0])) @ u.T)
    assert meter.value() == pytest.approx(entropy_rank(3, 1), rel=1e-5)


def test_a_sketch_of_a_large_matrix_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergeops.inspection import effective_rank as ranks

    monkeypatch.setattr(ranks, "EXACT_SIDE", 100)
    u = torch.linalg.qr(torch.randn(700, 4, dtype=torch.float64))[0]
    meter = RankMeter(700, 700)
    matrix = (u * torch.tensor([4.0, 3.0, 2.0, 1.0])) @ u.T
    for start in range(0, 700, 64):
        meter.add(matrix[start : start + 64])
    assert meter.value() == pytest.approx(entropy_rank(4, 3, 2, 1), rel=0.05)


def test_a_matrix_with_nan_has_no_rank() -> None:
    meter = RankMeter(3, 3)
    meter.add(torch.full((3, 3), math.nan, dtype=torch.float64))
    assert meter.value() is None
