"""Methods that look at rows, columns or whole tensors give the same bits however they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes

from mergeops import methods
from mergeops.kernels.blocks import BLOCK
from mergeops.methods.steps.whole import merge_tensors

CASES: list[tuple[str, dict[str, Any]]] = [
    ("nuslerp", {}),
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", {}),
    ("karcher", {}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("ties", {"rescale": True}),
    ("dare_linear", {"match_norm": True}),
    ("breadcrumbs", {"density": 0.4, "gamma": 0.1, "rescale": True}),
    ("breadcrumbs_ties", {"density": 0.4, "gamma": 0.1, "normalize": True}),
    ("della", {}),
    ("della", {"match_norm": True}),
    ("della_linear", {"density": 0.3, "normalize": True}),
    ("sce", {"select_topk": 0.3}),
    ("arcee_fusion", {}),
    ("ramplus_tl", {"epsilon": 0.05}),
]
SHAPES = [(3 * BLOCK + 5,), (9001, 7), (40001, 1), (11, 6007), (3, 5, 4001)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_chunks_give_the_same_bits_as_the_whole(
    name: str, parameters: dict[str, Any], shape: tuple[int, ...]
) -> None:
    method = methods.get(name)
    base, sources = fine_tunes(shape, min(3, method.max_sources or 3))
    whole = merge_tensors(name, sources, base, parameters)
    assert whole.shape == base.shape and whole.isfinite().all()
    assert merge_tensors(name, sources, base, parameters, chunk=BLOCK).equal(whole)


def test_chunks_are_whole_rows_only_for_methods_that_ask_for_them() -> None:
    stock = methods.get("model_stock")
    plain, filter_wise = stock.parameters(), stock.parameters(filter_wise=True)
    short, long = (
        methods.MethodView(numel=9 * row, per_source={}, shape=(9, row))
        for row in (1000, 10 * BLOCK)
    )
    assert stock.chunk_length(plain, short, 2 * BLOCK) == 2 * BLOCK
    assert stock.chunk_length(filter_wise, short, 2 * BLOCK) == 32_000
    assert stock.chunk_length(filter_wise, long, 2 * BLOCK) == 10 * BLOCK
    assert methods.get("linear").chunk_length(None, short, BLOCK) == BLOCK


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_a_base_makes_these_methods_work_on_task_vectors(name: str) -> None:
    base, sources = fine_tunes((50,), 2)
    moved = [source - base for source in sources]
    merged = merge_tensors(name, sources, base)
    assert torch.allclose(merged, base + merge_tensors(name, moved), atol=1e-6)
    assert not torch.allclose(merged, merge_tensors(name, sources), atol=1e-4)
    method = methods.get(name)
    assert not method.needs_base and method.uses_base(True) and not method.uses_base(False)


def test_only_methods_that_can_use_a_base_get_it() -> None:
    assert methods.get("ties").uses_base(True)
    assert not methods.get("linear").uses_base(True)


def test_a_tensor_without_dimensions_is_one_row() -> None:
    place = methods.MethodView(numel=1, per_source={})
    assert place.row_length == 1
    assert methods.MethodView(numel=6, per_source={}, shape=(2, 3)).row_length == 3


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize(("name", "parameters"), CASES)
@given(data=st.data())
def test_finite_matrices_give_finite_matrices(
    name: str, parameters: dict[str, Any], data: st.DataObject
) -> None:
    method = methods.get(name)
    n = min(3, method.max_sources or 3)
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    numel = int(torch.Size(shape).numel())
    numbers = st.sampled_from([0.0, 1e-45, -1e-30, 1.0, -1.0]) | st.floats(-1e6, 1e6, width=32)
    tensors = [
        torch.tensor(data.draw(st.lists(numbers, min_size=numel, max_size=numel))).view(shape)
        for _ in range(n + 1)
    ]
    merged = merge_tensors(name, tensors[1:], tensors[0], parameters)
    assert merged.shape == tensors[0].shape and merged.dtype == torch.float32
    assert merged.isfinite().all()
