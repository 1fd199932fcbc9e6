"""The laws that every merge method obeys, whoever wrote it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from mergeops.kernels import BLOCK
from mergeops.lazy_torch import Tensor, torch
from mergeops.methods import Method, get, merge_tensors


class MethodContract:
    """Tests that hold a method to what the engine, the planner and the command line rely on.

    A test file runs them all for one method by

        class TestMine(MethodContract):
            method = "mine"

    and for several ones by

        @pytest.mark.parametrize("name", ["mine", "mine_linear"])
        class TestMine(MethodContract):
            pass

    A law that says nothing about a method is skipped, with the reason. One of them tries values
    that hypothesis finds, and is skipped where that is not installed.
    """

    method = ""
    """Name of the method."""

    @pytest.fixture
    def name(self) -> str:
        """The method's name, as each law asks for it."""
        return self.method

    def test_method_is_documented(self, name: str) -> None:
        """With a sentence, a paper and a sentence about each parameter."""
        method = get(name)
        assert method.documentation.endswith(".")
        assert method.paper.startswith("https://")
        assert method.version >= 1
        described = method.describe()
        fields = dataclasses.fields(method.parameters)
        assert [d.name for d in described] == [f.name for f in fields]
        assert all(d.text.endswith(".") and d.type in ("float", "int", "bool") for d in described)
        assert set(method.source_parameters) <= set(method.tensor_parameters)
        assert method.parameters() == method.parameters()

    def test_sources_equal_to_the_base_give_the_base(self, name: str) -> None:
        base, _ = _inputs(1, 1000)
        merged = _merge(name, [base.clone() for _ in range(_count(name))], base)
        assert torch.allclose(merged, base, rtol=1e-6, atol=0)

    def test_weights_of_zero_give_the_base(self, name: str) -> None:
        method = get(name)
        if not method.needs_base or "weight" not in method.source_parameters:
            pytest.skip("it does not weigh task vectors")
        base, sources = _inputs(_count(name), 1000)
        merged = _merge(name, sources, base, per_source={"weight": [0.0] * len(sources)})
        assert merged.equal(base)

    def test_order_of_sources_does_not_matter(self, name: str) -> None:
        if get(name).order_matters:
            pytest.skip("it says that the order matters")
        base, sources = _inputs(_count(name), 1000)
        digests = [f"digest{i}" for i in range(len(sources))]
        expected = _merge(name, sources, base, digests=digests)
        for order in itertools.permutations(range(len(sources))):
            shuffled = [sources[i] for i in order]
            merged = _merge(name, shuffled, base, digests=[digests[i] for i in order])
            assert torch.allclose(merged, expected, rtol=1e-6, atol=1e-6)

    def test_one_whole_source_is_itself(self, name: str) -> None:
        """With weight 1 and nothing dropped."""
        method = get(name)
        if method.min_sources > 1 or method.max_sources == 1:
            # A method that takes no second source may take the one in part: that is what it is for.
            pytest.skip("it takes no single source among others")
        base, (source,) = _inputs(1, 1000)
        whole = {"weight": 1.0, "density": 1.0}
        parameters = {key: x for key, x in whole.items() if key in method.source_parameters}
        merged = _merge(name, [source], base, parameters=parameters)
        assert torch.allclose(merged, source, atol=1e-6)

    def test_inputs_are_left_alone(self, name: str) -> None:
        base, sources = _inputs(_count(name), 500)
        copies = [tensor.clone() for tensor in (base, *sources)]
        _merge(name, sources, base)
        assert all(t.equal(c) for t, c in zip((base, *sources), copies, strict=True))

    def test_float32_agrees_with_float64(self, name: str) -> None:
        base, sources = _inputs(_count(name), 5000)
        exact = _merge(name, [source.double() for source in sources], base.double())
        merged = _merge(name, sources, base)
        assert merged.dtype == torch.float32 and exact.dtype == torch.float64
        assert torch.allclose(merged.double(), exact, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("numel", [3 * BLOCK, 5 * BLOCK + 77])
    @pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK])
    def test_chunks_give_the_same_bits_as_the_whole(
        self, name: str, numel: int, chunk: int
    ) -> None:
        base, sources = _inputs(_count(name), numel)
        assert _merge(name, sources, base, chunk=chunk).equal(_merge(name, sources, base))

    def test_threads_do_not_change_the_bits(self, name: str) -> None:
        base, sources = _inputs(_count(name), 8 * BLOCK + 5)
        threads_before = torch.get_num_threads()
        merged = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                merged.append(_merge(name, sources, base))
        finally:
            torch.set_num_threads(threads_before)
        assert merged[0].equal(merged[1]) and merged[0].equal(merged[2])

    def test_cuda_gives_the_same_bits_as_the_cpu(self, name: str) -> None:
        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")
        base, sources = _inputs(_count(name), 5 * BLOCK + 77)
        merged = _merge(name, [source.cuda() for source in sources], base.cuda())
        assert merged.cpu().equal(_merge(name, sources, base))

    def test_finite_in_gives_finite_out(self, name: str) -> None:
        """Whatever the number of sources, the shape, the values, the weights and the densities."""
        pytest.importorskip("hypothesis")
        from hypothesis import given, settings
        from hypothesis import strategies as st

        method = get(name)
        number = st.floats(-1e6, 1e6, width=32)

        def of_each(values: Any, n: int) -> Any:
            return st.lists(values, min_size=n, max_size=n)

        @settings(max_examples=25, deadline=None)
        @given(data=st.data())
        def law(data: Any) -> None:
            n = data.draw(st.integers(method.min_sources, method.max_sources or 4))
            shape = data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
            values = of_each(number, torch.Size(shape).numel())
            base, *sources = [
                torch.tensor(data.draw(values), dtype=torch.float32).view(shape)
                for _ in range(n + 1)
            ]
            per_source = {}
            if "weight" in method.source_parameters:
                per_source["weight"] = data.draw(of_each(st.floats(0.1, 2.0), n))
            if "density" in method.source_parameters:
                per_source["density"] = data.draw(of_each(st.floats(0.0, 1.0), n))
            merged = _merge(name, sources, base, per_source=per_source)
            assert merged.shape == base.shape
            # 1 / density is unbounded, so the smallest densities may overflow float32 rightly.
            if min(per_source.get("density", [1.0])) > 1e-6 or not method.is_random:
                assert merged.isfinite().all()

        law()

    def test_empty_and_single_entry_tensors_are_merged(self, name: str) -> None:
        for numel in (0, 1):
            base, sources = _inputs(_count(name), numel)
            assert _merge(name, sources, base).shape == (numel,)

    def test_stacked_weights_in_half_precision_are_merged_in_the_compute_dtype(
        self, name: str
    ) -> None:
        """As a search does with weights that lie on the device already."""
        base, sources = _inputs(_count(name), 3 * BLOCK + 5)
        stored = torch.stack(sources).bfloat16()
        merged = _merge(name, stored, base.bfloat16(), chunk=BLOCK, compute=torch.float32)
        assert merged.dtype == torch.bfloat16
        assert merged.equal(_merge(name, sources, base).bfloat16())


def _inputs(n: int, numel: int) -> tuple[Tensor, list[Tensor]]:
    """A base and n fine-tunes of it, rounded to bfloat16 as files hold them."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(numel, generator=generator)
    sources = [base + 0.05 * torch.randn(numel, generator=generator) for _ in range(n)]
    return base.bfloat16().float(), [source.bfloat16().float() for source in sources]


def _count(name: str) -> int:
    """How many sources a law takes: three, or as many as the method does."""
    method: Method = get(name)
    return max(min(3, method.max_sources or 3), method.min_sources)


def _merge(name: str, sources: Sequence[Tensor] | Tensor, base: Tensor, **how: Any) -> Tensor:
    return merge_tensors(name, sources, base if get(name).needs_base else None, **how)
