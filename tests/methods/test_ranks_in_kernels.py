"""Kernels that drop by rank keep the entries that ``drop_by_rank`` keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeops.kernels import bits_of
from mergeops.methods.steps import fused
from mergeops.methods.steps.fused import Bits, Drops, Formula
from mergeops.methods.steps.ranks import drop_by_rank

KINDS = (
    "normal",
    "few values",
    "mostly zero",
    "all zero",
    "equal",
    "far below",
    "nearly equal",
    "subnormal",
)
KEY = 0x9E3779B97F4A7C15


def changes(kind: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Rows of task vectors whose magnitudes lie in a certain way."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal(shape).astype(np.float32)
    made: dict[str, Any] = {
        "normal": normal,
        "few values": np.round(normal * 2) / 8,
        "mostly zero": np.where(generator.random(shape) < 0.8, 0.0, normal),
        "all zero": np.zeros(shape),
        "equal": np.sign(normal),
        "far below": np.where(np.arange(shape[1]) == 0, 1e30, normal * 1e-20),
        "nearly equal": np.float32(1.0) + generator.integers(0, 9, shape) * np.float32(2.0**-22),
        "subnormal": normal * 1e-42,
    }
    return torch.from_numpy(made[kind].astype(np.float32))


def merged(
    delta: torch.Tensor,
    density: float,
    epsilon: float,
    offset: int,
    row_length: int,
    *,
    rescale: bool = False,
) -> torch.Tensor:
    """What kernels make of a task vector from a base of zeros."""
    rows = torch.stack([torch.zeros_like(delta), delta]).numpy().reshape(-1)
    low, high = bits_of(rows.view(np.uint8), "F32")  # type: ignore[misc]
    m = delta.numel()
    drops = Drops([density], [KEY], rescale=rescale, epsilons=[epsilon])
    out = torch.empty(m)
    bits = Bits(low, high, m, 2, m, True, offset)
    assert Formula([1.0], drops=drops).merge(bits, row_length, out.numpy().view(np.uint8), "F32")
    return out


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    length=st.sampled_from([1, 3, 40, 127, 128, 500, 2048, 2049, 6001]),
    rows=st.integers(1, 3),
    first=st.integers(0, 3),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0]),
    epsilon=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 1000),
    rescale=st.booleans(),
)
def test_kernels_keep_what_the_sorted_rows_keep(
    kind: str,
    length: int,
    rows: int,
    first: int,
    density: float,
    epsilon: float,
    seed: int,
    rescale: bool,
) -> None:
    delta = changes(kind, (rows, length), seed).view(-1)
    if rescale and delta.abs().max() > 1e20:
        # What is divided shall stay finite.
        delta *= 1e-10
    found = merged(delta, density, epsilon, first * length, length, rescale=rescale)
    expected = drop_by_rank(
        delta.clone()[None], [density], [epsilon], [KEY], first * length, length, rescale=rescale
    )[0]
    assert found.view(torch.int32).equal((0.0 + expected).view(torch.int32))


@pytest.mark.parametrize(
    ("kind", "length", "in_full"),
    [("normal", 4096, False), ("nearly equal", 4096, True), ("normal", 70_000, True)],
)
def test_rows_are_sorted_in_32_bits_where_these_tell_magnitudes_apart(
    kind: str, length: int, in_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = fused.loaded
    monkeypatch.setattr(fused, "loaded", lambda name: (seen.append(name), original(name))[1])
    delta = changes(kind, (2, length), 1).view(-1)
    found = merged(delta, 0.5, 0.3, 0, length, rescale=True)
    expected = drop_by_rank(delta.clone()[None], [0.5], [0.3], [KEY], 0, length, rescale=True)
    assert ("chances" in seen) == in_full
    assert found.equal(expected[0])


@pytest.mark.parametrize(("kind", "sorts"), [("far below", True), ("few values", False)])
def test_rows_are_sorted_only_where_counting_would_take_longer(
    kind: str, sorts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting each entry's rank would take time quadratic in the row."""
    seen: list[Any] = []
    original = fused._sort_out

    def sort_out(*arguments: Any) -> bool:
        seen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(fused, "_sort_out", sort_out)
    delta = changes(kind, (2, 20_000), 1).view(-1)
    found = merged(delta, 0.5, 0.5, 0, 20_000)
    expected = drop_by_rank(delta.clone()[None], [0.5], [0.5], [KEY], 0, 20_000, rescale=False)
    assert bool(seen) == sorts
    assert found.equal(expected[0])


@pytest.mark.parametrize("length", [3, 600])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_left_to_the_method(length: int, bad: float) -> None:
    delta = torch.ones(length)
    delta[length // 2] = bad
    rows = torch.stack([torch.zeros(length), delta]).numpy().reshape(-1)
    low, high = bits_of(rows.view(np.uint8), "F32")  # type: ignore[misc]
    drops = Drops([0.5], [KEY], rescale=False, epsilons=[0.1])
    bits = Bits(low, high, length, 2, length, True, 0)
    formula, out = Formula([1.0], drops=drops), np.empty(4 * length, np.uint8)
    assert not formula.merge(bits, length, out, "F32")
    assert formula.norms(bits, length, length) is None
