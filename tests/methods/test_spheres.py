"""Methods that go along spheres: nuslerp, multislerp and karcher."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes
from torch import Tensor

from mergeops.errors import ConfigError, MergeError
from mergeops.methods.registry import Scan
from mergeops.methods.steps import columns
from mergeops.methods.steps.whole import merge_tensors

SPHERES = ["nuslerp", "multislerp", "karcher"]


def arc(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Shoemake's formula for two vectors in float64."""
    angle = math.acos(max(-1.0, min(1.0, float(a @ b / a.norm() / b.norm()))))
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@pytest.mark.parametrize("chunk", [4, 9, 84])
@pytest.mark.parametrize("with_base", [False, True])
def test_many_columns_are_taken_some_at_a_time_for_the_same_bits(
    with_base: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor of three dimensions: 28 columns of 3 entries, at most 5 at a time."""
    base, (a, b) = fine_tunes((3, 4, 7), 2)
    flags = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    origin = base if with_base else None
    expected = merge_tensors("nuslerp", [a, b], origin, flags)
    widths, products = [], columns._products

    def seen(scan: Scan, count: int, length: int) -> Tensor:
        widths.append(count)
        return products(scan, count, length)

    monkeypatch.setattr(columns, "_products", seen)
    monkeypatch.setattr(columns, "WIDTH", 5)
    assert merge_tensors("nuslerp", [a, b], origin, flags, chunk=chunk).equal(expected)
    assert widths == [5] * 5 + [3]


def karcher(points: list[Tensor], steps: int) -> Tensor:
    """Steps on the sphere, with whole vectors in float64."""
    units = [p / p.norm() for p in points]
    mean = sum(units) / len(units)
    mean = mean / mean.norm()
    for _ in range(steps):
        step = torch.zeros_like(mean)
        for unit in units:
            dot = float((mean @ unit).clamp(-1, 1))
            if math.acos(dot) > 1e-9:
                step += math.acos(dot) / math.sin(math.acos(dot)) * (unit - dot * mean) / len(units)
        length = float(step.norm())
        if length < 1e-12:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
    return mean * sum(float(p.norm()) for p in points) / len(points)


def multislerp(points: list[Tensor], weights: list[float]) -> Tensor:
    """With the tangent step written out."""
    shares = [w / sum(weights) for w in weights]
    units = [p / p.norm() for p in points]
    mean = sum(w * u for w, u in zip(shares, units, strict=True))
    mean = mean / mean.norm()
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(shares, units, strict=True))
    length = float(tangent.norm())
    if length > 0:
        mean = mean * math.cos(length) + tangent * (math.sin(length) / length)
    return mean * sum(w * float(p.norm()) for w, p in zip(shares, points, strict=True))


def test_nuslerp_walks_the_quarter_circle_by_weight() -> None:
    sources = [torch.tensor([1.0, 0]), torch.tensor([0.0, 1])]
    merged = merge_tensors("nuslerp", sources, None, {}, {"weight": [2, 1]})
    expected = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    assert merged.tolist() == pytest.approx(expected, abs=1e-7)


def test_nuslerp_takes_the_arc_even_between_nearly_parallel_vectors() -> None:
    """slerp takes the line above a cosine of 0.9995."""
    a, b = torch.tensor([1.0, 0]), torch.tensor([math.cos(0.02), math.sin(0.02)])
    merged = merge_tensors("nuslerp", [a.double(), b.double()])
    assert merged.tolist() == pytest.approx([math.cos(0.01), math.sin(0.01)], abs=1e-8)


@pytest.mark.parametrize("parameters", [{}, {"nuslerp_flatten": False}])
@pytest.mark.parametrize(
    ("a", "b"), [([2.0, 4], [4.0, 8]), ([0.0, 0], [4.0, 8]), ([2.0, 4], [-4.0, -8])]
)
def test_nuslerp_takes_the_line_where_there_is_no_arc(
    parameters: dict[str, bool], a: list[float], b: list[float]
) -> None:
    sources = [torch.tensor(a), torch.tensor(b)]
    merged = merge_tensors("nuslerp", sources, None, parameters, {"weight": [3, 1]})
    expected = [0.75 * x + 0.25 * y for x, y in zip(a, b, strict=True)]
    assert merged.tolist() == pytest.approx(expected, abs=1e-6)


def test_nuslerp_without_flatten_walks_between_rows_or_between_columns() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    half = math.sin(math.pi / 4)
    rows = merge_tensors("nuslerp", [first, second], None, {"nuslerp_flatten": False})
    assert rows.tolist() == [pytest.approx([half, half]), [0.0, 2.0]]
    columns = merge_tensors(
        "nuslerp",
        [first, second],
        None,
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    )
    # First column: (1, 0) and zero, a line. Second: (0, 2) and (1, 2).
    angle = math.acos(4 / (2 * math.sqrt(5)))
    factor = math.sin(angle / 2) / math.sin(angle)
    assert columns[:, 0].tolist() == pytest.approx([0.5, 0.0])
    assert columns[:, 1].tolist() == pytest.approx([factor, 4 * factor])


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    dimension=st.sampled_from([None, 0, -1]),
    weights=st.lists(st.floats(0.1, 2), min_size=2, max_size=2),
    size=st.sampled_from([1e-15, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_nuslerp_agrees_with_shoemake_vector_by_vector(
    shape: list[int], dimension: int | None, weights: list[float], size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (size * torch.randn(shape, generator=generator) for _ in range(2))
    parameters = {"nuslerp_flatten": dimension is None, "nuslerp_row_wise": dimension == 0}
    merged = merge_tensors("nuslerp", [a, b], None, parameters, {"weight": weights})
    if dimension is None:
        pairs = [(a.view(-1), b.view(-1), merged.view(-1))]
    else:
        split = [x.movedim(dimension, -1).reshape(-1, shape[dimension]) for x in (a, b, merged)]
        pairs = list(zip(*split, strict=True))
    for x, y, found in pairs:
        x, y = x.double(), y.double()
        across = float(x @ y / x.norm() / y.norm())
        if across < -0.999998:
            continue  # opposite: the line, see above
        expected = arc(x, y, weights[1] / sum(weights))
        assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5 * size)


def test_columns_sum_up_over_very_different_magnitudes() -> None:
    """Each column has its own step: small columns beside large ones stay precise."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1e-15, 1.0, 1e15])
    a, b = (torch.randn(500, 3, generator=generator) * scale for _ in range(2))
    parameters = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    merged = merge_tensors("nuslerp", [a, b], None, parameters)
    for j in range(3):
        expected = arc(a[:, j].double(), b[:, j].double(), 0.5)
        assert torch.allclose(merged[:, j].double(), expected, rtol=1e-5, atol=0)


def test_multislerp_of_two_unit_vectors_is_half_way_round() -> None:
    sources = [torch.tensor([1.0, 0]), torch.tensor([0.0, 1])]
    merged = merge_tensors("multislerp", sources)
    assert merged.tolist() == pytest.approx([math.sqrt(0.5)] * 2, abs=1e-6)


def test_multislerp_has_the_mean_length() -> None:
    sources = [torch.tensor([2.0, 0]), torch.tensor([0.0, 4])]
    merged = merge_tensors("multislerp", sources, None, {}, {"weight": [3, 1]})
    assert merged.norm().item() == pytest.approx(0.75 * 2 + 0.25 * 4, rel=1e-6)
    # The direction is that of 0.75 and 0.25 of unit vectors.
    assert (merged[0] / merged[1]).item() == pytest.approx(3, rel=1e-6)


def test_multislerp_without_normalizing_grows_with_the_weights() -> None:
    sources = [torch.tensor([1.0, 0]), torch.tensor([0.0, 1])]
    parameters = {"normalize_weights": False}
    merged = merge_tensors("multislerp", sources, None, parameters, {"weight": [1, 1]})
    assert merged.norm().item() == pytest.approx(2, rel=1e-6)


def test_multislerp_of_directions_that_cancel_is_the_weighted_sum() -> None:
    angles = (0.0, 2 * math.pi / 3, 4 * math.pi / 3)
    sources = [torch.tensor([math.cos(x), math.sin(x)]) * 3 for x in angles]
    merged = merge_tensors("multislerp", sources, None, {"eps": 1e-6})
    assert merged.abs().max().item() < 1e-6


@pytest.mark.parametrize("n", [2, 3, 5])
def test_multislerp_agrees_with_the_formula_that_takes_the_tangent_step(n: int) -> None:
    base, sources = fine_tunes((40,), n)
    weights = [1.0 + i for i in range(n)]
    expected = multislerp([source.double() for source in sources], weights)
    merged = merge_tensors("multislerp", sources, None, {}, {"weight": weights})
    assert torch.allclose(merged.double(), expected, atol=1e-6)
    expected = base.double() + multislerp([(s - base).double() for s in sources], weights)
    merged = merge_tensors("multislerp", sources, base, {}, {"weight": weights})
    assert torch.allclose(merged.double(), expected, atol=1e-6)


def test_karcher_mean_of_two_is_the_middle_of_the_arc() -> None:
    sources = [torch.tensor([1.0, 0]), torch.tensor([0.0, 3])]
    merged = merge_tensors("karcher", sources)
    assert merged.tolist() == pytest.approx([2 * math.sqrt(0.5)] * 2, rel=1e-6)


def test_karcher_mean_differs_from_the_projected_mean() -> None:
    """Three points on one arc, at 0, 0 and 90 degrees: the mean angle is 30 degrees."""
    sources = [torch.tensor([1.0, 0]), torch.tensor([1.0, 0]), torch.tensor([0.0, 1])]
    merged = merge_tensors("karcher", sources, None, {"max_iter": 50, "tol": 1e-9})
    assert math.atan2(*merged.flip(0).tolist()) == pytest.approx(math.pi / 6, abs=1e-6)
    projected = merge_tensors("multislerp", sources)
    assert math.atan2(*projected.flip(0).tolist()) == pytest.approx(math.atan(0.5), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    numel=st.integers(4, 40),
    steps=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_karcher_agrees_with_steps_of_whole_vectors(
    n: int, numel: int, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(numel, generator=generator)
    sources = [common + 0.7 * torch.randn(numel, generator=generator) for _ in range(n)]
    merged = merge_tensors("karcher", sources, None, {"max_iter": steps, "tol": 1e-12})
    expected = karcher([source.double() for source in sources], steps)
    assert torch.allclose(merged.double(), expected, rtol=1e-5, atol=1e-6)


def test_karcher_of_opposite_directions_is_the_plain_mean() -> None:
    merged = merge_tensors("karcher", [torch.tensor([1.0, 2]), torch.tensor([-3.0, -6])])
    assert merged.tolist() == pytest.approx([-1.0, -2.0])


def test_karcher_skips_a_source_opposite_to_the_mean() -> None:
    sources = [torch.tensor([1.0, 0]), torch.tensor([1.0, 0]), torch.tensor([-1.0, 0])]
    assert merge_tensors("karcher", sources).tolist() == pytest.approx([1.0, 0.0])


def test_a_zero_source_has_no_direction_but_counts_in_karchers_length() -> None:
    sources = [torch.tensor([4.0, 0]), torch.zeros(2)]
    assert merge_tensors("karcher", sources).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("name", SPHERES)
def test_tensors_of_zeros_give_zeros(name: str) -> None:
    assert merge_tensors(name, [torch.zeros(3)] * 2).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_weights_that_cancel_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"weights 1, -1 add up to 0, which {name} cannot"):
        merge_tensors(name, [torch.ones(2)] * 2, None, {}, {"weight": [1, -1]})


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_weights_of_zero_on_task_vectors(name: str) -> None:
    base, sources = fine_tunes((20,), 2)
    merged = merge_tensors(name, sources, base, {}, {"weight": [0, 0]})
    assert merged.isfinite().all()


def test_counts_and_ranges_are_checked() -> None:
    ones = [torch.ones(2)] * 3
    with pytest.raises(MergeError, match="nuslerp takes exactly 2 sources, not 3"):
        merge_tensors("nuslerp", ones)
    with pytest.raises(ConfigError, match=r"method.eps is -1.0; allowed: at least 0"):
        merge_tensors("multislerp", ones, None, {"eps": -1.0})
    with pytest.raises(ConfigError, match=r"method.max_iter is 0; allowed: at least 1"):
        merge_tensors("karcher", ones, None, {"max_iter": 0})
    with pytest.raises(ConfigError, match=r"method.tol is -0.1; allowed: at least 0"):
        merge_tensors("karcher", ones, None, {"tol": -0.1})
