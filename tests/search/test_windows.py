"""Windows over checkpoints: which there are, their weights, and a study of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.errors import ConfigError
from mergeops.recipe import compose
from mergeops.search import parameter_types
from mergeops.search.checkpoints_of_run import oldest_first
from mergeops.search.windows import (
    CheckpointWindow,
    Windows,
    WindowsParameters,
    decay_weights,
    windows_of,
)

HALF = math.sqrt(0.5)
ORDER = {"math": 30, "dates": 10, "units": 20}
"""Source -> the step at which it was saved."""


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("uniform", [0.25] * 4),
        ("linear", [0.25] * 4),
        ("1-sqrt", [0.5, HALF - 0.5, math.sqrt(0.75) - HALF, 1 - math.sqrt(0.75)]),
        ("cosine", [(1 - HALF) / 2, HALF / 2, HALF / 2, (1 - HALF) / 2]),
    ],
)
def test_weights_are_the_falls_of_the_decay_that_they_imitate(
    kind: str, weights: list[float]
) -> None:
    assert decay_weights(kind, 4) == pytest.approx(weights)


def test_a_mean_with_these_weights_is_a_run_whose_updates_decayed() -> None:
    updates = [0.3, -1.2, 0.7, 2.0]
    checkpoints = [5.0 + sum(updates[: i + 1]) for i in range(4)]
    weights = decay_weights("1-sqrt", 4)
    decayed = 5.0 + updates[0] + sum(u * (1 - math.sqrt(i / 4)) for i, u in enumerate(updates) if i)
    mean = sum(w * c for w, c in zip(weights, checkpoints, strict=True))
    assert mean == pytest.approx(decayed)


def test_every_window_that_fits_is_there_once() -> None:
    found = windows_of(4, WindowsParameters(weights=("uniform", "linear")))
    assert {window.name for window in found} == {
        "last 2 uniform", "last 2 every 2 uniform", "last 3 uniform", "last 4 uniform",
    }  # fmt: skip
    assert CheckpointWindow(1, 2, 2, "uniform").places(6) == [2, 4]
    assert CheckpointWindow(1, 2, 2, "uniform").name == "last 2 every 2 before 1 uniform"
    message = r"none of search.lengths \[9\] fits .* into the 4 checkpoints"
    with pytest.raises(ConfigError, match=message):
        windows_of(4, WindowsParameters(lengths=(9,)))


def test_a_window_is_a_linear_merge_of_its_checkpoints() -> None:
    recipe = compose(["base=/x", "sources={a: /a, b: /b, c: /c}", "method=ties"])
    window = CheckpointWindow(0, 2, 1, "1-sqrt")
    made = Windows(recipe, (window,)).made({"window": window.name})
    assert made.base is None and made.method.name == "linear"
    weights = {name: spec.parameters["weight"] for name, spec in made.sources.items()}
    assert weights == {"b": round(math.sqrt(0.5), 9), "c": round(1 - math.sqrt(0.5), 9)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.weights=[wsd]", "search.weights has 'wsd'; allowed: uniform, linear, 1-sqrt, cos"),
        ("search.lengths=[1]", "search.lengths is 1; allowed: from 2"),
        ("search.spacings=[0]", "search.spacings is 0; allowed: from 1"),
    ],
)
def test_a_window_that_is_none_is_refused_when_the_recipe_is_read(word: str, message: str) -> None:
    words = ["sources={a: /a, b: /b}", "search=windows", word]
    with pytest.raises(ConfigError, match=message):
        compose(words, strategies=parameter_types())


@pytest.mark.parametrize(
    ("uris", "order"),
    [
        (("runs:/7f/checkpoint-9", "runs:/7f/checkpoint-100", "runs:/7f/checkpoint-20"), "acb"),
        (("/out/global_step2", "/out/global_step1/"), "ba"),
        (("checkpoint-100", "checkpoint-9"), "ba"),
        (("/out/iter_0000500", "/out/iter_0001000"), "ab"),
        (("/out/epoch=1-step=20", "/out/epoch=0-step=10"), "ba"),
        (("runs:/7f/checkpoint-9", "runs:/8e/checkpoint-10"), ""),
        (("/models/run-1", "/models/run-2"), ""),
        (("/out/checkpoint-9", "/out/model"), ""),
        (("/out/checkpoint-9", "/out/checkpoint-09"), ""),
    ],
)
def test_checkpoints_of_one_run_are_known_by_their_uris(uris: tuple[str, ...], order: str) -> None:
    sources = ", ".join(f"{n}: {{uri: '{uri}'}}" for n, uri in zip("abc", uris, strict=False))
    assert "".join(oldest_first(compose([f"sources={{{sources}}}"]))) == order


def test_a_study_over_checkpoints_of_one_run_has_to_beat_the_means_of_the_last_ones(
    study: Callable[..., dict[str, Any]], place: Path
) -> None:
    for name, step in ORDER.items():
        (place / name).rename(place / f"checkpoint-{step}")
    sources = [f"sources.{n}.uri=checkpoint-{s}" for n, s in ORDER.items()]
    found = study("search.trials=1", "search.space={sources.*.weight: [0.0, 1.0]}", *sources)
    assert set(found["baselines"]) >= {"uniform_soup", "last_2"}
    low, high = found["baselines"]["last_2"]["interval"]
    assert low <= found["baselines"]["last_2"]["difference"] <= high
    windows = study("strategy=windows", "search.spacings=[1]", "search.lengths=[2]", *sources)
    last = {row["parameters"]["window"]: row["score"] for row in windows["trials"]}
    assert last["last 2 uniform"] == found["baselines"]["last_2"]["dev"], "the last two are meant"


def test_every_window_of_a_run_is_tried(study: Callable[..., dict[str, Any]], place: Path) -> None:
    found = study("strategy=windows", "search.spacings=[1]")
    tried = {row["parameters"]["window"] for row in found["trials"]}
    assert tried == {f"last {n} {kind}" for n in (2, 3) for kind in ("uniform", "1-sqrt")}
    assert {"best_source", "uniform_soup"} <= found["baselines"].keys()
    assert len(found["kept"]) == 1


def test_each_source_is_left_out_once(study: Callable[..., dict[str, Any]]) -> None:
    found = study("strategy=leave_one_out", "method=ties")
    rows = {row["left out"]: row for row in found["steps"]}
    assert list(rows) == ["nothing", "math", "dates", "units"]
    assert len(found["trials"]) == 4
    gain = found["gains"]["math"]
    assert gain["low"] <= gain["difference"] <= gain["high"]
    assert gain["difference"] == pytest.approx(rows["nothing"]["dev"] - rows["math"]["dev"])
    with pytest.raises(ConfigError, match="leave_one_out needs at least 3 sources for slerp"):
        study("strategy=leave_one_out", "method=slerp", "only=[math, dates]", "base=null")
