"""Compiled kernels write the bytes that the methods' own functions write."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeops import methods
from mergeops.engine.execute import Tuning, merge
from mergeops.engine.lanes import Chunk, Lane
from mergeops.errors import MergeError, SourceError
from mergeops.kernels import bits_of
from mergeops.kernels import loader as native
from mergeops.kernels.blocks import BLOCK
from mergeops.methods.steps import fused
from mergeops.methods.steps.consensus import elect_and_average
from mergeops.methods.steps.reduction import block_sums, pairs
from mergeops.methods.steps.weighting import weighted_sum
from mergeops.planning.plan import Plan

Make = Callable[..., Any]
FUSED = [name for name in methods.names() if methods.get(name).formula]
VARIATIONS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"normalize": False}],
    "task_arithmetic": [{"scale": 0.7}, {"normalize": True}],
    "slerp": [{"t": 0.3}],
    "ties": [{"density": 0.5, "rescale": True, "scale": 1.3}, {"density": 1.0, "normalize": False}],
    "dare_linear": [{"match_norm": True}, {"rescale": False}],
    "dare_ties": [{"match_norm": True}, {"density": 1.0}],
    "breadcrumbs": [{"density": 0.3, "gamma": 0.2, "rescale": True}, {"density": 0.0}],
    "breadcrumbs_ties": [{"density": 0.5, "gamma": 0.0, "normalize": True}],
    "della": [{"match_norm": True}, {"density": 0.95, "rescale": False}],
    "della_linear": [{"match_norm": True}, {"density": 1.0}],
    "multislerp": [{"normalize_weights": False}],
    "nearswap": [{"t": 0.01}, {"t": 0.0}],
    "passthrough": [{"scale": -0.7}],
    "ram": [{"epsilon": 0.01}, {"epsilon": 0.0}],
    "ramplus_tl": [{"epsilon": 0.01, "r": 0.5}],
    "sce": [{"select_topk": 0.3}, {"select_topk": 0.85}, {"select_topk": 0.0}],
}
"""Besides the defaults."""
CASES = [(name, p) for name in FUSED for p in [{}, *VARIATIONS.get(name, [])]]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Base and fine-tunes in three formats: rows of odd length, a vector, a number, zero changes,
    changes of both signs and many equal ones."""
    made: dict[str, dict[str, Path]] = {}
    generator = torch.Generator().manual_seed(5)
    shapes = {"rows": (5, 3 * BLOCK // 4 + 1), "table": (160, 256), "vector": (777,), "one": ()}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for model in ("base", "a", "b", "c"):
        tensors = {}
        for name, values in base.items():
            change = 0.02 * torch.randn(values.shape, generator=generator)
            change = change.where(torch.rand(values.shape, generator=generator) > 0.2, 0.0)
            tensors[name] = values if model == "base" else values + change
        for word, dtype in DTYPES.items():
            folder = tmp_path_factory.mktemp(f"{model}-{word}")
            rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            save_file(rounded, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
            made.setdefault(word, {})[model] = folder
    return made


def plan_for(plan_of: Make, name: str, parameters: dict[str, Any], models: dict[str, Path]) -> Plan:
    method = methods.get(name)
    names = "abc"[: method.max_sources or 3]
    each = {
        n: {"weight": w} if "weight" in method.source_parameters else {}
        for n, w in zip(names, (0.5, 1.0, -0.3), strict=False)
    }
    base = models["base"]
    plan: Plan = plan_of(
        {"name": name} | parameters, base, {n: models[n] for n in names}, each, seed=3
    )
    return plan


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_kernels_can_be_loaded() -> None:
    assert fused.kernels().result()


@pytest.mark.parametrize("word", DTYPES)
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)
def test_kernels_write_what_the_method_writes(
    name: str,
    parameters: dict[str, Any],
    word: str,
    plan_of: Make,
    models: dict[str, dict[str, Path]],
    tmp_path: Path,
) -> None:
    plan = plan_for(plan_of, name, parameters, models[word])
    eager = merge(plan, tmp_path / "eager", tuning=Tuning(fused=False))
    for chunk, lanes in ((BLOCK, 2), (1 << 18, 1)):
        tuning = Tuning(chunk=chunk, lanes=lanes, fused=True)
        found = merge(plan, tmp_path / f"fused-{chunk}", tuning=tuning)
        assert weights_of(found) == weights_of(eager)


@pytest.mark.parametrize("name", FUSED)
def test_kernels_are_what_is_used(
    name: str,
    plan_of: Make,
    models: dict[str, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the comparison would compare a method with itself."""
    plan = plan_for(plan_of, name, {}, models["bfloat16"])

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the method's own function was called")

    method = methods.get(name)
    with monkeypatch.context() as patched:
        patched.setitem(methods.registry._REGISTRY, name, dataclasses.replace(method, merge=refuse))
        merge(plan, tmp_path / "out", tuning=Tuning(fused=True))


def test_without_llvmlite_the_methods_do_it_all(
    plan_of: Make,
    models: dict[str, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_for(plan_of, "ties", {}, models["bfloat16"])
    expected = merge(plan, tmp_path / "with", tuning=Tuning(fused=True))
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    native._kernels.cache_clear()
    fused.kernels.cache_clear()
    try:
        found = merge(plan, tmp_path / "without", tuning=Tuning(fused=True))
        assert not fused.kernels().result()
        assert "merging without compiled kernels" in caplog.text
    finally:
        fused.kernels.cache_clear()
    assert weights_of(found) == weights_of(expected)


def test_kernels_that_load_but_do_not_run_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any) -> bool:
        raise OSError("illegal instruction")

    monkeypatch.setattr(fused, "loaded", lambda name: fails)
    fused.kernels.cache_clear()
    try:
        assert not fused.kernels().result()
        assert "merging without compiled kernels: illegal instruction" in caplog.text
    finally:
        fused.kernels.cache_clear()


def test_a_format_that_kernels_do_not_write_is_read_once(
    plan_of: Make,
    models: dict[str, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = {n: models["float16"][n] for n in "ab"}
    plan = plan_of({"name": "linear"}, None, sources, dtype={"save": "float16"})
    expected = merge(plan, tmp_path / "eager", tuning=Tuning(fused=False))
    original, reads = Lane.raw, []

    def raw(self: Lane, chunk: Chunk) -> Any:
        reads.append((chunk.parts, chunk.start))
        return original(self, chunk)

    monkeypatch.setattr(Lane, "raw", raw)
    found = merge(plan, tmp_path / "fused", tuning=Tuning(fused=True))
    assert weights_of(found) == weights_of(expected)
    assert len(reads) == len(set(reads))


def test_input_that_is_not_finite_is_named_as_ever(
    plan_of: Make, models: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    tensors = load_file(models["bfloat16"]["a"] / "model.safetensors")
    tensors["table"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    for name in ("linear", "ties", "model_stock", "della"):
        plan = plan_for(plan_of, name, {}, models["bfloat16"] | {"a": folder})
        with pytest.raises(SourceError, match=r"table.*\[3, 5\]"):
            merge(plan, tmp_path / name, tuning=Tuning(fused=True))


def test_result_beyond_the_saved_format_is_refused_as_ever(
    plan_of: Make, models: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    plan = plan_of(
        {"name": "linear", "normalize": False},
        None,
        {n: models["float32"][n] for n in "ab"},
        {n: {"weight": 3e38} for n in "ab"},
        dtype={"save": "bfloat16"},
    )
    with pytest.raises(MergeError, match="which bfloat16 cannot hold"):
        merge(plan, tmp_path / "out", tuning=Tuning(fused=True))


def test_inputs_of_different_formats_are_brought_to_one(
    plan_of: Make, models: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    mixed = {"base": models["bfloat16"]["base"], "a": models["float16"]["a"]}
    mixed |= {"b": models["float32"]["b"], "c": models["bfloat16"]["c"]}
    plan = plan_for(plan_of, "ties", {"rescale": True}, mixed)
    eager = merge(plan, tmp_path / "eager", tuning=Tuning(fused=False))
    found = merge(plan, tmp_path / "fused", tuning=Tuning(fused=True))
    assert weights_of(found) == weights_of(eager)


def stored(values: torch.Tensor) -> tuple[Any, str]:
    """The bytes of values, in their own memory, and the name of their format."""
    name = {torch.bfloat16: "BF16", torch.float32: "F32"}[values.dtype]
    return values.contiguous().view(-1).view(torch.uint8).numpy(), name


def bits_of_rows(rows: torch.Tensor, *, has_base: bool) -> fused.Bits:
    flat = bits_of(*stored(rows))
    assert flat is not None
    return fused.Bits(*flat, rows.shape[1], len(rows), rows.shape[1], has_base, 0)


@pytest.mark.parametrize("word", ["bfloat16", "float32"])
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_products_are_added_in_the_tensors_order(n: int, has_base: bool, word: str) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n + has_base, 2 * BLOCK + 777, generator=generator).to(DTYPES[word])
    sources = rows.float()
    vectors = (sources[1:] - sources[0] if has_base else sources).double()
    expected = [block_sums(vectors[i] * vectors[k]) for i, k in pairs(n)]
    found = fused.gram(bits_of_rows(rows, has_base=has_base))
    assert found is not None
    assert torch.equal(torch.from_numpy(found), torch.stack(expected))


@pytest.mark.parametrize("word", ["bfloat16", "float32"])
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_sources_are_added_up_in_the_tensors_order(n: int, has_base: bool, word: str) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n + has_base, 5001, generator=generator).to(DTYPES[word])
    sources, weights = rows.float(), [0.3, -0.7, 1.1, 0.2, 0.45][:n]
    if has_base:
        expected = sources[0] + weighted_sum(sources[1:] - sources[0], weights) * 0.7
    else:
        expected = weighted_sum(sources, weights)
    formula = fused.Formula(weights, scale=0.7 if has_base else 1.0)
    for saved in (torch.bfloat16, torch.float32):
        out = torch.empty(rows.shape[1], dtype=saved)
        assert formula.merge(bits_of_rows(rows, has_base=has_base), 5001, *stored(out))
        assert torch.equal(out, expected.to(saved))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_kernels_elect_and_average_as_the_tensors_do(n: int, normalize: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n + 1, 5001, generator=generator).bfloat16()
    # Nobody changes some entries, and two cancel each other in others.
    rows[1:, :99] = rows[0, :99]
    rows[:, 99:199] = torch.tensor([1.0, 2.0, 0.0, 2.0, 1.0, 0.0])[: n + 1, None].bfloat16()
    weights, factors = [0.5, 0.5, -0.25, 1.0, 0.0][:n], [1.0, 2.0, 0.3, 1.0, 4.0][:n]
    deltas = (rows[1:].float() - rows[0].float()) * torch.tensor(factors)[:, None]
    merged = elect_and_average(deltas, weights, normalize=normalize)
    expected = rows[0].float() + merged * 0.7
    formula = fused.Formula(weights, 0.7, factors, vote=True, normalize=normalize)
    out = torch.empty(5001)
    assert formula.merge(bits_of_rows(rows, has_base=True), 5001, *stored(out))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("bad", [0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("n", [2, 5])
def test_kernels_leave_what_is_not_finite_to_the_method(n: int, part: int, bad: int) -> None:
    words = np.full((n + 1, 3000), 0x3F800000, np.uint32)
    words[part, 2999] = bad
    bits = bits_of_rows(torch.from_numpy(words.view(np.float32)), has_base=True)
    for saved in (torch.bfloat16, torch.float32):
        assert not fused.Formula([0.0] * n).merge(
            bits, 3000, *stored(torch.empty(3000, dtype=saved))
        )
    assert fused.gram(bits) is None


@pytest.mark.parametrize(("last", "fits"), [(0x7F7F7FFF, True), (0x7F7F8000, False)])
@pytest.mark.parametrize("sign", [0, 1 << 31])
def test_a_value_that_rounds_to_infinity_is_not_saved(last: int, fits: bool, sign: int) -> None:
    words = np.array([[sign | last]], np.uint32)
    bits = bits_of_rows(torch.from_numpy(words.view(np.float32)), has_base=False)
    formula = fused.Formula([1.0])
    assert formula.merge(bits, 1, *stored(torch.empty(1, dtype=torch.bfloat16))) is fits
    assert formula.merge(bits, 1, *stored(torch.empty(1, dtype=torch.float32)))
