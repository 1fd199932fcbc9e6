"""What of earlier studies is tried first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mergeops.progress import Progress
from mergeops.recipe import compose
from mergeops.search.earlier import first_trials
from mergeops.search.space import Space

RECIPE = compose(["base=/x", "sources={a: /a, b: /b}", "method=linear"])
SPACE = Space.read(
    RECIPE,
    {"method": ["linear", "ties"], "sources.*.weight": [0.0, 1.0], "method.density": [0.1, 1.0]},
)


def row(score: float, state: str = "whole", **values: Any) -> dict[str, Any]:
    weights = {"sources.a.weight": 0.5, "sources.b.weight": score}
    return {"state": state, "score": score, "parameters": weights | values}


def first(reports: list[dict[str, Any]], folder: Path, count: int = 3) -> list[Any]:
    source = SimpleNamespace(sha256="s")
    resolved = SimpleNamespace(base=source, sources={"a": source, "b": source})
    tools: Any = SimpleNamespace(progress=Progress(quiet=True), resolve=lambda _: resolved)
    log: Any = SimpleNamespace(earlier_reports=lambda _: reports)
    found = first_trials(RECIPE, SPACE, count, tools, log, folder)
    return [values["sources.b.weight"] for values in found]


def test_the_best_of_each_earlier_study_comes_first_the_newest_study_before_others(
    tmp_path: Path,
) -> None:
    newer = {"trials": [row(0.5, method="linear"), row(0.7, method="linear")]}
    older = {"trials": [row(0.9, method="linear"), row(0.99, "dropped", method="linear")]}
    assert first([newer, older], tmp_path) == [0.7, 0.9, 0.5]
    assert first([], tmp_path) == [0.7, 0.9, 0.5], "a study that goes on tries the same"
    assert first([], tmp_path, 1) == [0.7]


def test_what_the_space_does_not_have_is_left_out(tmp_path: Path) -> None:
    rows = [
        row(0.9),  # without a method
        row(0.8, method="ties"),  # without its density
        row(0.7, method="slerp"),
        row(0.6, method="linear", seed=3),
        row(0.4, method="ties", **{"method.density": 0.01}),
        row(0.3, method="ties", **{"method.density": 0.5}),
    ]
    assert first([{"trials": rows}, {}], tmp_path) == [0.3]
