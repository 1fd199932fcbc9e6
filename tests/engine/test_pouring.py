"""A merge poured into a model in memory is, byte by byte, the merge that is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeops import methods
from mergeops.checkpoint import weights_sha256
from mergeops.engine import OpenInputs, merge, pour
from mergeops.errors import EvaluationError, MergeError
from mergeops.evaluate.model import Model, load_model
from mergeops.evaluate.seat import Seat
from mergeops.evaluate.tasks import TaskSet
from mergeops.planning import Plan, write_small_files
from mergeops.recipe.settings import EvaluateSpec

Make = Callable[..., Any]
NAMES = [name for name in methods.names() if not methods.get(name).activations]
"""Methods that need nothing but weights."""
CPU = torch.device("cpu")


class Poured:
    """A plan's result."""

    def __init__(self, plan: Plan, inputs: OpenInputs) -> None:
        self.plan, self.inputs = plan, inputs
        self.tensors = {task.name: (task.dtype, task.shape) for task in plan.tasks}

    def pour(self, take: Any) -> str:
        return pour(self.plan, take, inputs=self.inputs)


def check(
    plan: Plan, seat: Seat, inputs: OpenInputs, vessel: Path, place: Path, dtype: str = "auto"
) -> None:
    """Compare the model in the seat with the one that transformers loads from files."""
    spec = EvaluateSpec(device="cpu", dtype=dtype)
    written = merge(plan, place / "written")
    config = place / "config"
    config.mkdir()
    write_small_files(plan, config)
    filled = seat.fill(config, Poured(plan, inputs), TaskSet(spec, {}), [Model(vessel, "")])
    assert filled is not None and filled.weights_sha256 == weights_sha256(written)
    expected = load_model(written, spec, CPU, trust_remote_code=False)
    mine, theirs = seat.lm.model.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(mine[n].dtype == t.dtype and torch.equal(mine[n], t) for n, t in theirs.items())
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(seat.lm.model(tokens).logits, expected(tokens).logits)


@pytest.fixture(scope="module")
def models(tiny_llama: Make) -> dict[str, Path]:
    base = tiny_llama(dtype="bfloat16", layers=1)
    tuned = {n: tiny_llama(like=base, seed=i, dtype="bfloat16") for i, n in enumerate("abc", 1)}
    return {"base": base, **tuned}


@pytest.fixture(scope="module")
def seat() -> Any:
    place = Seat(CPU, trust_remote_code=False)
    yield place
    place.close()


@pytest.fixture(scope="module")
def inputs() -> Any:
    with OpenInputs() as opened:
        yield opened


@pytest.mark.parametrize("name", NAMES)
def test_every_method_pours_what_it_writes_into_one_model(
    name: str,
    plan_of: Make,
    models: dict[str, Path],
    seat: Seat,
    inputs: OpenInputs,
    tmp_path: Path,
) -> None:
    names = "abc"[: methods.get(name).max_sources or 3]
    plan = plan_of({"name": name}, models["base"], {n: models[n] for n in names}, seed=3)
    check(plan, seat, inputs, models["base"], tmp_path)


@pytest.mark.parametrize(
    "kind", ["tied", "adapter", "several files", "float32 model", "other vocabularies"]
)
def test_whatever_the_sources_are_the_model_is_the_one_of_the_files(
    kind: str, plan_of: Make, tiny_llama: Make, tiny_lora: Make, inputs: OpenInputs, tmp_path: Path
) -> None:
    base = tiny_llama(tied=kind == "tied", layers=1, dtype="bfloat16", hidden=64)
    sources: dict[str, Any] = {
        n: tiny_llama(like=base, seed=i, dtype="bfloat16") for i, n in enumerate("ab", 1)
    }
    recipe: dict[str, Any] = {}
    if kind == "adapter":
        sources["b"] = (tiny_lora(base, seed=2), base)
    if kind == "several files":
        recipe["output"] = {"shard_size": "40KB"}
    if kind == "other vocabularies":
        recipe["tokenizer"] = {"source": "union"}
    plan = plan_of({"name": "ties"}, base, sources, **recipe)
    assert (len(plan.shards) > 1) == (kind == "several files")
    seat = Seat(CPU, trust_remote_code=False)
    dtype = "float32" if kind == "float32 model" else "auto"
    check(plan, seat, inputs, base, tmp_path, dtype)
    seat.close()


def test_a_source_is_opened_once_for_all_plans(
    plan_of: Make, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.engine import readers

    opened: list[str] = []
    original = readers.open_input

    def counted(planned: Any, *how: Any) -> Any:
        opened.append(planned.name)
        return original(planned, *how)

    monkeypatch.setattr(readers, "open_input", counted)
    sources = {n: models[n] for n in "ab"}
    with OpenInputs() as own:
        for density in (0.2, 0.5, 0.9):
            plan = plan_of({"name": "ties", "density": density}, models["base"], sources)
            pour(plan, lambda *_: None, inputs=own)
    assert sorted(opened) == ["a", "b", "base"]


def test_a_model_of_another_shape_is_not_filled(
    plan_of: Make, models: dict[str, Path], tiny_llama: Make, inputs: OpenInputs, tmp_path: Path
) -> None:
    plan = plan_of({"name": "ties"}, models["base"], {n: models[n] for n in "ab"})
    write_small_files(plan, tmp_path)
    tasks = TaskSet(EvaluateSpec(device="cpu"), {})
    place = Seat(CPU, trust_remote_code=False)
    other = Model(tiny_llama(layers=2), "")
    assert place.fill(tmp_path, Poured(plan, inputs), tasks, [other]) is None
    vllm = TaskSet(EvaluateSpec(backend="vllm"), {})
    assert place.fill(tmp_path, Poured(plan, inputs), vllm, [Model(models["base"], "")]) is None


def test_after_a_merge_that_fails_the_seat_is_empty(
    plan_of: Make, models: dict[str, Path], inputs: OpenInputs, tmp_path: Path
) -> None:
    plan = plan_of({"name": "ties"}, models["base"], {n: models[n] for n in "ab"})
    write_small_files(plan, tmp_path)
    tasks = TaskSet(EvaluateSpec(device="cpu"), {})
    place = Seat(CPU, trust_remote_code=False)

    class Failing(Poured):
        def pour(self, take: Any) -> str:
            def half(name: str, offset: int, data: memoryview) -> None:
                take(name, offset, data)
                raise MergeError("it overflows")

            return pour(self.plan, half, inputs=self.inputs)

    vessel = [Model(models["base"], "")]
    with pytest.raises(MergeError, match="it overflows"):
        place.fill(tmp_path, Failing(plan, inputs), tasks, vessel)
    assert place.lm is None
    later = tmp_path / "later"
    later.mkdir()
    check(plan, place, inputs, models["base"], later)
    place.close()


def test_a_number_that_the_model_cannot_hold_is_refused(
    plan_of: Make, tiny_llama: Make, inputs: OpenInputs, tmp_path: Path
) -> None:
    base = tiny_llama(layers=1)
    big = {n: tiny_llama(like=base, seed=i, noise=1e6) for i, n in enumerate("ab", 1)}
    plan = plan_of({"name": "linear"}, None, big)
    write_small_files(plan, tmp_path)
    place = Seat(CPU, trust_remote_code=False)
    tasks = TaskSet(EvaluateSpec(device="cpu", dtype="float16"), {})
    with pytest.raises(EvaluationError, match="holds NaN or Inf in"):
        place.fill(tmp_path, Poured(plan, inputs), tasks, [Model(base, "")])
    assert place.lm is None
