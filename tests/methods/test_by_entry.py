"""Methods that look at single entries, and what the task-vector methods have in common."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fine_tunes import fine_tunes

from mergeops.errors import ConfigError, MergeError
from mergeops.methods.steps.whole import merge_tensors


def test_passthrough_scales_its_only_source() -> None:
    source = torch.tensor([1.0, -2.0])
    assert merge_tensors("passthrough", [source]).equal(source)
    assert merge_tensors("passthrough", [source], None, {}, {"scale": [-3]}).tolist() == [-3, 6]
    with pytest.raises(MergeError, match="passthrough takes exactly 1 source, not 2"):
        merge_tensors("passthrough", [source, source])


def test_nearswap_moves_by_no_more_than_t() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    source = torch.tensor([1.25, 3.0, -3.0, 1.0])
    merged = merge_tensors("nearswap", [source], base, {"t": 0.5})
    assert merged.tolist() == [1.25, 1.5, 0.5, 1.0]


@settings(max_examples=50, deadline=None)
@given(a=st.floats(-1e6, 1e6, width=32), b=st.floats(-1e6, 1e6, width=32), t=st.floats(1e-5, 10))
def test_nearswap_is_the_published_blend(a: float, b: float, t: float) -> None:
    blend = min(t / max(abs(b - a), 1e-6), 1.0)
    expected = blend * b + (1 - blend) * a
    base, source = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    merged = merge_tensors("nearswap", [source], base, {"t": t})
    assert merged.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_nearswap_with_t_of_zero_is_the_base() -> None:
    base, sources = fine_tunes((10,), 1)
    assert merge_tensors("nearswap", sources, base, {"t": 0.0}).equal(base)
    with pytest.raises(ConfigError, match=r"method.t is -0.1; allowed: at least 0"):
        merge_tensors("nearswap", sources, base, {"t": -0.1})
    with pytest.raises(MergeError, match="nearswap takes exactly 1 source, not 2"):
        merge_tensors("nearswap", sources * 2, base)


def test_ram_averages_shared_changes_and_keeps_unique_ones() -> None:
    base = torch.full((4,), 10.0)
    first = base + torch.tensor([1.0, 2, 0, 1e-6])
    second = base + torch.tensor([3.0, 0, 0, 4])
    assert merge_tensors("ram", [first, second], base).tolist() == [12, 12, 10, 14]


def test_ram_plus_raises_unique_changes_by_the_overlap() -> None:
    """First source: 1 shared, 2 unique, ratio 0.5; second: 1 shared, 4 unique, 0.25."""
    base = torch.zeros(7)
    first = torch.tensor([2.0, 1, 1, 0, 0, 0, 0])
    second = torch.tensor([4.0, 0, 0, 1, 1, 1, 1])
    merged = merge_tensors("ramplus_tl", [first, second], base, {"r": 0.4, "alpha": 0.3})
    unique_first, unique_second = 1 + 0.4 * 0.3, 1 + 0.4 * 0.25
    expected = [3.0, *[unique_first] * 2, *[unique_second] * 4]
    assert merged.tolist() == pytest.approx(expected, rel=1e-6)


def test_ram_plus_without_unique_or_without_shared_changes_is_ram() -> None:
    base = torch.zeros(4)
    shared = [torch.tensor([1.0, 2, 0, 0]), torch.tensor([3.0, 4, 0, 0])]
    alone = [torch.tensor([1.0, 2, 0, 0]), torch.tensor([0.0, 0, 3, 4])]
    for sources in (shared, alone):
        plus = merge_tensors("ramplus_tl", sources, base)
        assert plus.equal(merge_tensors("ram", sources, base))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    numel=st.integers(1, 40),
    epsilon=st.sampled_from([0.0, 1e-5, 0.02]),
    r=st.floats(0, 1),
    alpha=st.floats(0, 2),
    seed=st.integers(0, 1000),
)
def test_ram_agrees_with_an_entry_by_entry_reference(
    n: int, numel: int, epsilon: float, r: float, alpha: float, seed: int
) -> None:
    base, sources = fine_tunes((numel,), n, seed)
    deltas = torch.stack([(source - base).double() for source in sources])
    changed = deltas.abs() > epsilon
    count = changed.sum(dim=0)
    factors = []
    for mine in changed:
        shared, unique = int((mine & (count > 1)).sum()), int((mine & (count == 1)).sum())
        factors.append(1 + r * min(shared / max(unique, 1e-5), alpha))
    for name, parameters in (
        ("ram", {"epsilon": epsilon}),
        ("ramplus_tl", {"epsilon": epsilon, "r": r, "alpha": alpha}),
    ):
        expected = base.double()
        for i in range(numel):
            who = [j for j in range(n) if changed[j, i]]
            if len(who) == 1:
                factor = factors[who[0]] if name == "ramplus_tl" else 1.0
                expected[i] += factor * deltas[who[0], i]
            elif who:
                expected[i] += sum(deltas[j, i] for j in who) / len(who)
        merged = merge_tensors(name, sources, base, parameters)
        assert torch.allclose(merged.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "key"),
    [("ram", "epsilon"), ("ramplus_tl", "epsilon"), ("ramplus_tl", "r"), ("ramplus_tl", "alpha")],
)
def test_negative_parameters_of_ram_are_refused(name: str, key: str) -> None:
    base, sources = fine_tunes((5,), 2)
    with pytest.raises(ConfigError, match=f"method.{key} is -1.0; allowed: at least 0"):
        merge_tensors(name, sources, base, {key: -1.0})


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear"])
def test_normalize_divides_by_the_sum_of_the_weights(name: str) -> None:
    base = torch.zeros(2)
    sources = [torch.tensor([1.0, 2]), torch.tensor([5.0, 10])]
    parameters = {"normalize": True, "scale": 2.0}
    if name == "dare_linear":
        parameters["density"] = 1.0
    merged = merge_tensors(name, sources, base, parameters, {"weight": [3, 1]})
    assert merged.tolist() == [4, 8]
    assert merge_tensors(name, sources, base, parameters, {"weight": [0, 0]}).equal(base)
    with pytest.raises(ConfigError, match=f"0, which {name} cannot normalize; .*normalize=false"):
        merge_tensors(name, sources, base, parameters, {"weight": [1, -1]})


def test_ties_with_rescale_keeps_the_norm_of_each_task_vector() -> None:
    source = torch.tensor([1.0, -2, 3, -4])
    parameters = {"density": 0.5, "rescale": True}
    merged = merge_tensors("ties", [source], torch.zeros(4), parameters)
    assert merged.tolist() == pytest.approx([0, 0, 3 * 10 / 7, -4 * 10 / 7], rel=1e-6)
    # Nothing stays or nothing was there: nothing to rescale.
    parameters["density"] = 0.0
    assert merge_tensors("ties", [source], torch.zeros(4), parameters).tolist() == [0] * 4
    zeros = torch.zeros(4)
    assert merge_tensors("ties", [zeros], zeros, {"rescale": True}).tolist() == [0] * 4
