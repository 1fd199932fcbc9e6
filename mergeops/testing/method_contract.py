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
        assert method.documentation.endswith("."), (
            f"{name}: its module's docstring begins with {method.documentation!r}; it takes a "
            "sentence that ends with a full stop"
        )
        assert method.paper.startswith("https://"), (
            f"{name}: its module's docstring holds no link (https://...) to where it is described"
        )
        assert method.version >= 1, f"{name}: its version is {method.version}; it begins with 1"
        described = method.describe()
        fields = dataclasses.fields(method.parameters)
        assert [d.name for d in described] == [f.name for f in fields]
        for each in described:
            assert each.text.endswith("."), f"{name}.{each.name} has no sentence below it"
            assert each.type in ("float", "int", "bool"), f"{name}.{each.name} is a {each.type}"
        unknown = set(method.source_parameters) - set(method.tensor_parameters)
        assert not unknown, (
            f"{name}: source_parameters names {sorted(unknown)}, which are no fields"
        )
        assert method.parameters() == method.parameters(), f"{name}: its defaults differ each time"

    def test_sources_equal_to_the_base_give_the_base(self, name: str) -> None:
        base, _ = _inputs(1, 1000)
        merged = _merge(name, [base.clone() for _ in range(_count(name))], base)
        _check("sources equal to the base give the base", merged, base, rtol=1e-6)

    def test_weights_of_zero_give_the_base(self, name: str) -> None:
        method = get(name)
        if not method.needs_base or "weight" not in method.source_parameters:
            pytest.skip("it does not weigh task vectors")
        base, sources = _inputs(_count(name), 1000)
        merged = _merge(name, sources, base, per_source={"weight": [0.0] * len(sources)})
        _check("weights of zero give the base", merged, base)

    def test_order_of_sources_does_not_matter(self, name: str) -> None:
        if get(name).order_matters:
            pytest.skip("it says that the order matters")
        base, sources = _inputs(_count(name), 1000)
        digests = [f"digest{i}" for i in range(len(sources))]
        expected = _merge(name, sources, base, digests=digests)
        for order in itertools.permutations(range(len(sources))):
            shuffled = [sources[i] for i in order]
            merged = _merge(name, shuffled, base, digests=[digests[i] for i in order])
            law = f"sources in the order {order} give what they give in the recipe's"
            _check(law, merged, expected, rtol=1e-6, atol=1e-6)

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
        _check("one source with weight 1 is itself", merged, source, rtol=1e-5, atol=1e-6)

    def test_inputs_are_left_alone(self, name: str) -> None:
        base, sources = _inputs(_count(name), 500)
        copies = [tensor.clone() for tensor in (base, *sources)]
        _merge(name, sources, base)
        names = ("the base", *(f"source {i}" for i in range(len(sources))))
        for what, tensor, copy in zip(names, (base, *sources), copies, strict=True):
            _check(f"{what} is left as it was", tensor, copy)

    def test_float32_agrees_with_float64(self, name: str) -> None:
        base, sources = _inputs(_count(name), 5000)
        exact = _merge(name, [source.double() for source in sources], base.double())
        merged = _merge(name, sources, base)
        found, wanted = (merged.dtype, exact.dtype), (torch.float32, torch.float64)
        assert found == wanted, f"{name}: the merge of {wanted} inputs is {found}"
        law = "the merge in float32 is near that in float64"
        _check(law, merged.double(), exact, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("numel", [3 * BLOCK, 5 * BLOCK + 77])
    @pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK])
    def test_chunks_give_the_same_bits_as_the_whole(
        self, name: str, numel: int, chunk: int
    ) -> None:
        base, sources = _inputs(_count(name), numel)
        law = f"chunks of {chunk} entries give the same bits as the whole tensor"
        _check(law, _merge(name, sources, base, chunk=chunk), _merge(name, sources, base))

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
        for threads, other in zip((2, 3), merged[1:], strict=True):
            _check(f"{threads} threads give the same bits as one", other, merged[0])

    def test_cuda_gives_the_same_bits_as_the_cpu(self, name: str) -> None:
        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")
        base, sources = _inputs(_count(name), 5 * BLOCK + 77)
        merged = _merge(name, [source.cuda() for source in sources], base.cuda())
        _check("CUDA gives the same bits as the CPU", merged.cpu(), _merge(name, sources, base))

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
            _check_shape(name, merged, base)
            # 1 / density is unbounded, so the smallest densities may overflow float32 rightly.
            if min(per_source.get("density", [1.0])) > 1e-6 or not method.is_random:
                bad = int((~merged.isfinite()).sum())
                assert not bad, (
                    f"{name}: {bad} of {merged.numel()} entries of the merge of {n} finite sources "
                    f"are NaN or Inf, with {per_source or 'its defaults'}"
                )

        law()

    def test_empty_and_single_entry_tensors_are_merged(self, name: str) -> None:
        for numel in (0, 1):
            base, sources = _inputs(_count(name), numel)
            _check_shape(name, _merge(name, sources, base), base)

    def test_stacked_weights_in_half_precision_are_merged_in_the_compute_dtype(
        self, name: str
    ) -> None:
        """As a search does with weights that lie on the device already."""
        base, sources = _inputs(_count(name), 3 * BLOCK + 5)
        stored = torch.stack(sources).bfloat16()
        merged = _merge(name, stored, base.bfloat16(), chunk=BLOCK, compute=torch.float32)
        assert merged.dtype == torch.bfloat16, (
            f"{name}: the merge of bfloat16 weights is {merged.dtype}"
        )
        law = "bfloat16 weights, computed in float32, give the rounded merge of float32 weights"
        _check(law, merged, _merge(name, sources, base).bfloat16())


def _inputs(n: int, numel: int) -> tuple[Tensor, list[Tensor]]:
    """A base and n fine-tunes of it, rounded to bfloat16 as files hold them."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(numel, generator=generator)
    sources = [base + 0.05 * torch.randn(numel, generator=generator) for _ in range(n)]
    return base.bfloat16().float(), [source.bfloat16().float() for source in sources]


def _check(
    law: str, found: Tensor, expected: Tensor, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Fail in a sentence, not with two tensors.

    Args:
        law: as a sentence.
        found, expected: of one shape.
        rtol, atol: of ``torch.allclose``; without them the bits have to be the same.
    """
    # pytest would print both tensors with this function.
    __tracebackhide__ = True
    assert found.shape == expected.shape, (
        f"not so: {law}: the shape is {list(found.shape)}, not {list(expected.shape)}"
    )
    is_near = torch.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if is_near.all():
        return
    wrong = (~is_near).nonzero()
    first = tuple(wrong[0].tolist())
    most = float((found - expected).abs().nan_to_num(nan=float("inf")).max())
    pytest.fail(
        f"not so: {law}: {len(wrong)} of {found.numel()} entries differ, by {most:.3g} at most; "
        f"entry {first[0] if len(first) == 1 else first} is {float(found[first])!r}, not "
        f"{float(expected[first])!r}"
    )


def _check_shape(name: str, merged: Tensor, base: Tensor) -> None:
    assert merged.shape == base.shape, (
        f"{name}: tensors of shape {list(base.shape)} are merged into one of {list(merged.shape)}"
    )


def _count(name: str) -> int:
    """How many sources a law takes: three, or as many as the method does."""
    method: Method = get(name)
    return max(min(3, method.max_sources or 3), method.min_sources)


def _merge(name: str, sources: Sequence[Tensor] | Tensor, base: Tensor, **how: Any) -> Tensor:
    return merge_tensors(name, sources, base if get(name).needs_base else None, **how)
