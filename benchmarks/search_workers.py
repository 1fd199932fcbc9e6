"""How much of their time workers of a study spend merging and scoring.

    python -m benchmarks.search workers

The study is a real one, and so are its workers; what they try out takes a fixed time, in which they
sleep, so that the processors of the machine do not matter.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mergeops.executors import Desk, open_executor
from mergeops.progress import Progress
from mergeops.recipe import ExecutorSpec, Recipe, compose
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.search.bench import Bench, Cost
from mergeops.search.crew import Workers
from mergeops.search.racing import Race
from mergeops.search.samplers import open_sampler
from mergeops.search.space import Space
from mergeops.search.spending import Budget
from mergeops.search.study import Study

ITEMS = 200
MERGE_S, EVALUATION_S = 0.5, 9.5
"""Seconds: about what a trial of the demo's models takes."""


class Shelf(Bench):
    """Keeps scores, and neither merges nor scores."""

    def __init__(self, folder: Path, race: Race) -> None:
        self.folder, self.race, self.cost = folder, race, Cost()
        self.tools: Any = SimpleNamespace(
            progress=Progress(quiet=True), work_dir=folder, spent=SimpleNamespace(merges=0)
        )


class FakeWorkers(Workers):
    """Workers that call ``try_out`` of this module."""

    work = "benchmarks.search_workers:try_out"


def try_out(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """A candidate of a fixed cost, whose answers are drawn by its weights."""
    began = time.monotonic()
    time.sleep(MERGE_S)
    merged = time.monotonic()
    time.sleep(EVALUATION_S)
    recipe = Recipe.from_dict(payload["recipe"])
    weights: list[Any] = [source.parameters["weight"] for source in recipe.sources.values()]
    draw = random.Random(str(weights))
    values = [float(draw.random() < 0.8 - abs(weights[0] - 0.7)) for _ in range(ITEMS)]
    items = tuple(ItemResult(i, f"d{i}", "p", "t", value) for i, value in enumerate(values))
    task = TaskScore("t", "acc", sum(values) / ITEMS, None, items, "1", "fake")
    scores = Scores("w", "dev", {"t": task}, {})
    spent = Cost(
        answers=ITEMS,
        merge_seconds=merged - began,
        evaluation_seconds=time.monotonic() - merged,
    )
    digest = hashlib.sha256(str(weights).encode()).hexdigest()
    race = Race(shares=(1.0,), margin=0.0, alpha=0.5)
    Shelf(Path(payload["folder"]), race).keep(digest, {1.0: scores}, spent)
    return {
        "plan_digest": digest,
        "verdict": ["whole", [], "", ""],
        "shares": [1.0],
        "spent": asdict(spent),
    }


def utilisation(workers: int, trials: int) -> tuple[float, float]:
    """Of one study by so many workers: the share as its report has it, and its seconds."""
    recipe = compose(["sources={a: /a, b: /b, c: /c}", "method=linear"])
    space = Space.read(recipe, {"sources.*.weight": [0.05, 1.0]})
    nothing: Any = SimpleNamespace(
        values=lambda _: (), candidates={}, tried=[], sources={}, parents={}
    )
    log: Any = SimpleNamespace(log_trial=lambda *_, **__: None, log_candidate=lambda *_, **__: None)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_executor(ExecutorSpec(workers=workers, threads=1)) as executor,
    ):
        bench = Shelf(Path(folder), Race(shares=(1.0,), margin=0.0, alpha=0.05))
        study = Study(
            space=space,
            bench=bench,
            crew=FakeWorkers(bench, executor),
            baselines=nothing,
            log=log,
            budget=Budget(),
            items=ITEMS,
        )
        began = time.monotonic()
        study.run_trials(open_sampler("tpe", space, 0), trials, [])
        assert study.utilisation is not None
        return study.utilisation, time.monotonic() - began
