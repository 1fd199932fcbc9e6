"""Each method against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mergeops.errors import ConfigError, MergeError
from mergeops.methods.steps.whole import merge_tensors


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_linear_is_the_weighted_mean() -> None:
    merged = merge_tensors("linear", [tensor(1, 2), tensor(5, 10)], None, {}, {"weight": [3, 1]})
    assert merged.tolist() == [2.0, 4.0]


def test_linear_without_normalize_is_the_weighted_sum() -> None:
    merged = merge_tensors(
        "linear", [tensor(1, 2), tensor(5, 10)], None, {"normalize": False}, {"weight": [3, -1]}
    )
    assert merged.tolist() == [-2.0, -4.0]


def test_linear_refuses_to_normalize_weights_that_cancel() -> None:
    with pytest.raises(ConfigError, match=r"weights 1, -1 add up to 0.*method.normalize=false"):
        merge_tensors("linear", [tensor(1), tensor(2)], None, {}, {"weight": [1, -1]})


def test_slerp_follows_the_quarter_circle() -> None:
    merged = merge_tensors("slerp", [tensor(1, 0), tensor(0, 1)], None, {"t": 1 / 3})
    expected = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    assert merged.tolist() == pytest.approx(expected, abs=1e-7)


def test_slerp_of_unequal_lengths_keeps_shoemakes_factors() -> None:
    merged = merge_tensors("slerp", [tensor(2, 0), tensor(0, 4)], None, {"t": 0.5})
    factor = math.sin(math.pi / 4) / math.sin(math.pi / 2)
    assert merged.tolist() == pytest.approx([2 * factor, 4 * factor], abs=1e-6)


def test_slerp_takes_the_line_where_the_two_are_parallel() -> None:
    merged = merge_tensors("slerp", [tensor(1, 1), tensor(3, 3)], None, {"t": 0.25})
    assert merged.tolist() == [1.5, 1.5]


def test_slerp_takes_the_line_where_one_is_zero() -> None:
    merged = merge_tensors("slerp", [tensor(0, 0), tensor(2, 4)], None, {"t": 0.25})
    assert merged.tolist() == [0.5, 1.0]


def test_slerp_takes_exactly_two() -> None:
    with pytest.raises(MergeError, match="slerp takes exactly 2 sources, not 3"):
        merge_tensors("slerp", [tensor(0)] * 3)


def test_task_arithmetic_adds_weighted_task_vectors() -> None:
    merged = merge_tensors(
        "task_arithmetic",
        [tensor(2, 1), tensor(1, 3)],
        tensor(1, 1),
        {"scale": 0.5},
        {"weight": [2, -1]},
    )
    assert merged.tolist() == [1 + 0.5 * 2 * 1, 1 + 0.5 * -1 * 2]


def test_ties_worked_example() -> None:
    """Trim to 2 of 4, elect, average over who agrees; all by hand."""
    base = tensor(10, 10, 10, 10)
    first = base + tensor(4, -3, 1, 0)  # keeps 4, -3
    second = base + tensor(2, 1, -5, 0)  # keeps 2, -5
    third = base + tensor(-1, -7, 8, 0)  # keeps -7, 8
    merged = merge_tensors("ties", [first, second, third], base, {"density": 0.5})
    # 4 and 2 agree; -3 and -7 agree; -5 + 8 > 0 elects +, so 8 alone; nobody.
    assert merged.tolist() == [10 + 3, 10 - 5, 10 + 8, 10]


def test_dissenting_source_is_left_out_of_the_mean() -> None:
    base = tensor(0)
    merged = merge_tensors(
        "ties", [tensor(3), tensor(1), tensor(-2)], base, {"density": 1.0}, {"weight": [1, 3, 1]}
    )
    assert merged.tolist() == [(3 * 1 + 1 * 3) / (1 + 3)]


def test_ties_without_normalize_adds_what_agrees() -> None:
    merged = merge_tensors(
        "ties",
        [tensor(3), tensor(1), tensor(-2)],
        tensor(0),
        {"density": 1.0, "normalize": False, "scale": 0.5},
        {"weight": [1, 3, 1]},
    )
    assert merged.tolist() == [0.5 * (3 * 1 + 1 * 3)]


def test_a_drawn_vote_elects_plus() -> None:
    merged = merge_tensors("ties", [tensor(3), tensor(7)], tensor(5), {"density": 1.0})
    assert merged.tolist() == [7.0]


def test_negative_weight_turns_a_vote_round() -> None:
    merged = merge_tensors("ties", [tensor(3)], tensor(5), {"density": 1.0}, {"weight": [-1]})
    assert merged.tolist() == [7.0]


def test_ties_cuts_equal_magnitudes_by_index_so_that_exactly_k_stay() -> None:
    base = torch.zeros(10)
    source = tensor(1, -1, 1, 2, 1, -1, 1, 1, 1, 1)
    merged = merge_tensors("ties", [source], base, {"density": 0.4})
    assert merged.tolist() == [1, -1, 1, 2, 0, 0, 0, 0, 0, 0]


def test_ties_with_density_that_keeps_nothing_is_the_base() -> None:
    base = tensor(1, 2, 3)
    merged = merge_tensors("ties", [base + 1], base, {"density": 0.3})
    assert merged.tolist() == base.tolist()


def test_a_tensor_may_have_another_density_for_each_source() -> None:
    base = torch.zeros(4)
    sources = [tensor(4, 3, 2, 1), tensor(40, 30, 20, 10)]
    merged = merge_tensors("ties", sources, base, {"normalize": False}, {"density": [0.25, 0.75]})
    assert merged.tolist() == [44, 30, 20, 0]


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_divides_what_stays_by_the_density(name: str) -> None:
    base = torch.zeros(10_000)
    merged = merge_tensors(name, [torch.ones(10_000)], base, {"density": 0.25, "weight": 1.0})
    values, counts = merged.unique(return_counts=True)
    assert values.tolist() == [0.0, 4.0]
    assert counts[1] / 10_000 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 10_000))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_without_rescale_keeps_the_size(name: str) -> None:
    parameters = {"density": 0.25, "weight": 1.0, "rescale": False}
    merged = merge_tensors(name, [torch.ones(1000)], torch.zeros(1000), parameters)
    assert merged.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_with_density_zero_is_the_base_and_one_drops_nothing(name: str) -> None:
    base, source = torch.arange(8.0), torch.arange(8.0) * 3
    assert merge_tensors(name, [source], base, {"density": 0.0}).equal(base)
    assert merge_tensors(name, [source], base, {"density": 1.0, "weight": 1.0}).equal(source)


def test_dare_draws_depend_on_seed_source_and_tensor() -> None:
    base, ones = torch.zeros(1000), torch.ones(1000)

    def mask(**where: object) -> torch.Tensor:
        return merge_tensors("dare_linear", [ones], base, {"density": 0.5}, **where) != 0

    first = mask(seed=0, digests=["a"], tensor="x")
    assert first.equal(mask(seed=0, digests=["a"], tensor="x"))
    for other in (
        mask(seed=1, digests=["a"], tensor="x"),
        mask(seed=0, digests=["b"], tensor="x"),
        mask(seed=0, digests=["a"], tensor="y"),
    ):
        assert 0.4 < (first == other).float().mean() < 0.6


def test_out_of_range_density_names_the_value() -> None:
    with pytest.raises(ConfigError, match=r"method.density is 1.5; allowed: from 0 to 1"):
        merge_tensors("ties", [tensor(1)], tensor(0), {"density": 1.5})
    with pytest.raises(ConfigError, match=r"method.density is -0.5"):
        merge_tensors("dare_ties", [tensor(1)], tensor(0), {}, {"density": [-0.5]})
    with pytest.raises(ConfigError, match=r"method.t is 2.0; allowed: from 0 to 1"):
        merge_tensors("slerp", [tensor(1), tensor(2)], None, {"t": 2})


def test_shapes_missing_base_and_unknown_parameters_are_refused() -> None:
    with pytest.raises(MergeError, match=r"source 1 has shape \[2\], not \[1\]"):
        merge_tensors("linear", [tensor(1), tensor(1, 2)])
    with pytest.raises(MergeError, match="ties needs a base"):
        merge_tensors("ties", [tensor(1)])
    with pytest.raises(MergeError, match="linear takes at least 1 source, not 0"):
        merge_tensors("linear", [])
    with pytest.raises(ConfigError, match="linear has no source parameter 'density'"):
        merge_tensors("linear", [tensor(1)], None, {}, {"density": [1]})
    with pytest.raises(ConfigError, match="weight has 2 values for 1 sources"):
        merge_tensors("linear", [tensor(1)], None, {}, {"weight": [1, 2]})
