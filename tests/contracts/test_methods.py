"""Laws that every registered method obeys; a new file in methods/ is held to them at once."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeops import methods
from mergeops.methods import BLOCK
from mergeops.methods.whole import merge_tensors

ALL = methods.names()
WITH_BASE = [name for name in ALL if methods.get(name).needs_base]
ORDER_FREE = [name for name in ALL if not methods.get(name).order_matters]
# A method that takes no second source may take the one in part: that is what it is for.
ONE_SOURCE = [
    name
    for name in ALL
    if methods.get(name).min_sources == 1 and methods.get(name).max_sources != 1
]
WEIGHTED = [name for name in WITH_BASE if "weight" in methods.get(name).source_parameters]


def inputs(
    n: int, numel: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and n fine-tunes of it, rounded to bfloat16 as files hold them."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(numel, generator=generator)
    sources = [base + 0.05 * torch.randn(numel, generator=generator) for _ in range(n)]
    return base.bfloat16().to(dtype), [source.bfloat16().to(dtype) for source in sources]


def count_for(name: str) -> int:
    method = methods.get(name)
    return min(3, method.max_sources or 3)


def run(
    name: str, sources: list[torch.Tensor], base: torch.Tensor, **where: object
) -> torch.Tensor:
    given_base = base if methods.get(name).needs_base else None
    return merge_tensors(name, sources, given_base, **where)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL)
def test_method_is_documented(name: str) -> None:
    method = methods.get(name)
    assert method.documentation.endswith(".")
    assert method.paper.startswith("https://")
    assert method.version >= 1
    described = method.describe()
    assert [d.name for d in described] == [f.name for f in dataclasses.fields(method.parameters)]
    assert all(d.text.endswith(".") and d.type in ("float", "int", "bool") for d in described)
    assert set(method.source_parameters) <= set(method.tensor_parameters)
    assert method.parameters() == method.parameters()


@pytest.mark.parametrize("name", ALL)
def test_sources_equal_to_the_base_give_the_base(name: str) -> None:
    base, _ = inputs(1, 1000)
    merged = run(name, [base.clone() for _ in range(count_for(name))], base)
    assert torch.allclose(merged, base, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_zero_give_the_base(name: str) -> None:
    base, sources = inputs(3, 1000)
    merged = run(name, sources, base, per_source={"weight": [0.0, 0.0, 0.0]})
    assert merged.equal(base)


@pytest.mark.parametrize("name", ORDER_FREE)
def test_order_of_sources_does_not_matter(name: str) -> None:
    base, sources = inputs(count_for(name), 1000)
    digests = [f"digest{i}" for i in range(len(sources))]
    expected = run(name, sources, base, digests=digests)
    for order in itertools.permutations(range(len(sources))):
        shuffled = [sources[i] for i in order]
        merged = run(name, shuffled, base, digests=[digests[i] for i in order])
        assert torch.allclose(merged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ONE_SOURCE)
def test_one_whole_source_is_itself(name: str) -> None:
    """With weight 1 and nothing dropped."""
    base, (source,) = inputs(1, 1000)
    method = methods.get(name)
    whole = {"weight": 1.0, "density": 1.0}
    parameters = {k: v for k, v in whole.items() if k in method.source_parameters}
    assert torch.allclose(run(name, [source], base, parameters=parameters), source, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_alone(name: str) -> None:
    base, sources = inputs(count_for(name), 500)
    copies = [tensor.clone() for tensor in (base, *sources)]
    run(name, sources, base)
    assert all(t.equal(c) for t, c in zip((base, *sources), copies, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_float32_agrees_with_float64(name: str) -> None:
    base, sources = inputs(count_for(name), 5000)
    exact = run(name, [s.double() for s in sources], base.double())
    merged = run(name, sources, base)
    assert merged.dtype == torch.float32 and exact.dtype == torch.float64
    assert torch.allclose(merged.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("numel", [3 * BLOCK, 5 * BLOCK + 77])
@pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK])
def test_chunks_give_the_same_bits_as_the_whole(name: str, numel: int, chunk: int) -> None:
    base, sources = inputs(count_for(name), numel)
    assert run(name, sources, base, chunk=chunk).equal(run(name, sources, base))


@pytest.mark.parametrize("name", ALL)
def test_threads_do_not_change_the_bits(name: str) -> None:
    base, sources = inputs(count_for(name), 8 * BLOCK + 5)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(name, sources, base))
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1]) and found[0].equal(found[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALL)
def test_cuda_gives_the_same_bits_as_the_cpu(name: str) -> None:
    base, sources = inputs(count_for(name), 5 * BLOCK + 77)
    merged = run(name, [source.cuda() for source in sources], base.cuda())
    assert merged.cpu().equal(run(name, sources, base))


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
def test_finite_in_gives_finite_out(name: str, data: st.DataObject) -> None:
    method = methods.get(name)
    n = data.draw(st.integers(method.min_sources, method.max_sources or 4))
    shape = data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    number = st.floats(-1e6, 1e6, width=32)
    numel = int(torch.Size(shape).numel())
    values = st.lists(number, min_size=numel, max_size=numel)
    tensors = [
        torch.tensor(data.draw(values), dtype=torch.float32).view(shape) for _ in range(n + 1)
    ]
    per_source = {}
    if "weight" in method.source_parameters:
        weights = st.floats(0.1, 2.0)
        per_source["weight"] = data.draw(st.lists(weights, min_size=n, max_size=n))
    if "density" in method.source_parameters:
        shares = st.floats(0.0, 1.0)
        per_source["density"] = data.draw(st.lists(shares, min_size=n, max_size=n))
    merged = run(name, tensors[1:], tensors[0], per_source=per_source)
    assert merged.shape == tensors[0].shape
    # 1 / density is unbounded, so the smallest densities may overflow float32 rightly.
    if min(per_source.get("density", [1.0])) > 1e-6 or not method.is_random:
        assert merged.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_empty_and_single_entry_tensors_are_merged(name: str) -> None:
    for numel in (0, 1):
        base, sources = inputs(count_for(name), numel)
        assert run(name, sources, base).shape == (numel,)


@pytest.mark.parametrize("name", ALL)
def test_stacked_weights_in_half_precision_are_merged_in_the_compute_dtype(name: str) -> None:
    """As a search does with weights that lie on the device already."""
    base, sources = inputs(count_for(name), 3 * BLOCK + 5)
    stored = torch.stack(sources).bfloat16()
    merged = merge_tensors(
        name,
        stored,
        base.bfloat16() if methods.get(name).needs_base else None,
        chunk=BLOCK,
        compute=torch.float32,
    )
    assert merged.dtype == torch.bfloat16
    assert merged.equal(run(name, sources, base).bfloat16())
