"""The course of a study, over answers that are made up: waiting, order, budget, failures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergeops.progress import Progress
from mergeops.recipe import Recipe, compose
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.search.bench import Candidate, Cost
from mergeops.search.crew import Alone, Assignment, TriedOut
from mergeops.search.racing import Race
from mergeops.search.samplers import open_sampler
from mergeops.search.space import Space
from mergeops.search.spending import read_budget
from mergeops.search.study import Study
from mergeops.search.study_page import csv, curves, pictures
from mergeops.search.study_report import report, table_of
from mergeops.tracking.logged_run import LoggedRun

SHARES = (0.125, 0.25, 0.5, 1.0)
ITEMS = 400


def answers_of(recipe: Recipe) -> list[float]:
    """Better, the nearer the weight of source a is to 0.7; of one family."""
    weight = recipe.sources["a"].parameters["weight"]
    draw = random.Random(0)
    own = random.Random(weight)
    quality = 0.8 - abs(weight - 0.7)
    return [
        float((draw.random() if own.random() < 0.95 else own.random()) < quality)
        for _ in range(ITEMS)
    ]


def scored(values: list[float]) -> Scores:
    items = tuple(ItemResult(i, f"d{i}", "p", "t", value) for i, value in enumerate(values))
    mean = sum(values) / len(values)
    task = TaskScore("t", "acc", mean, None, items, "1", f"of {len(values)}")
    return Scores("w", "dev", {"t": task}, {})


class Bench:
    """Candidates whose answers are made up."""

    def __init__(self, folder: Path, race: Race) -> None:
        self.folder, self.race, self.cost = folder, race, Cost()
        self.tools = SimpleNamespace(progress=Progress(quiet=True))
        self.asked: list[str] = []

    def try_out(self, label: str, recipe: Recipe, way: Any) -> Candidate:
        weight = recipe.sources["a"].parameters["weight"]
        if weight < 0.1:
            from mergeops.errors import MergeError

            raise MergeError("it overflows")
        values = answers_of(recipe)
        candidate = Candidate(
            label=label,
            recipe=recipe,
            plan_digest=hashlib.sha256(str(weight).encode()).hexdigest(),
            cost=Cost(merge_seconds=1.0),
        )

        def ask(share: float) -> Scores:
            self.asked.append(label)
            return scored(values[: round(share * ITEMS)])

        candidate.stages = {s: ask(s) for s in SHARES if s <= way.reached}
        candidate.verdict = self.race.run(
            candidate.stages, ask, may_wait=way.may_wait, is_raced=way.is_raced
        )
        self.cost.add(Cost(answers=candidate.answers, evaluation_seconds=0.1))
        return candidate


class Several:
    """Three candidates at a time, the last one done first."""

    workers = at_once = 3

    def __init__(self, bench: Any) -> None:
        self._alone, self._jobs = Alone(bench), list[Assignment]()

    @property
    def worker_seconds(self) -> float:
        return self._alone.worker_seconds

    def submit(self, job: Assignment) -> None:
        self._jobs.append(job)

    def next(self) -> TriedOut:
        self._alone.submit(self._jobs.pop())
        return self._alone.next()


class Log:
    """What would be logged."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.texts: dict[str, str] = {}

    log_work = LoggedRun.log_work

    def log_text(self, text: str, artifact: str) -> None:
        self.texts[artifact] = text

    def log_trial(self, *_: Any, **__: Any) -> None:
        pass

    def log_candidate(self, _name: str, *, number: int, state: str, **_: Any) -> None:
        assert number not in self.states, "each candidate is logged once"
        self.states[number] = state


Run = Callable[..., Study]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = compose(["sources={a: /a, b: /b}", "method=linear"])
    space = Space.read(recipe, {"sources.*.weight": [0.05, 1.0]})

    def run(trials: int, folder: str = "one", budget: str = "", **how: Any) -> Study:
        race = Race(shares=how.get("shares", SHARES), margin=0.02, alpha=0.05)
        (tmp_path / folder).mkdir(exist_ok=True)
        bench: Any = Bench(tmp_path / folder, race)
        baselines: Any = SimpleNamespace(
            values=lambda _: (), candidates={}, tried=[], sources={}, parents={}
        )
        study = Study(
            space=space,
            bench=bench,
            crew=how.get("crew", Alone)(bench),
            baselines=baselines,
            log=Log(),  # type: ignore[arg-type]
            budget=read_budget(budget),
            items=ITEMS,
        )
        study.run_trials(open_sampler(how.get("sampler", "tpe"), space, 1), trials, [])
        return study

    return run


def table(study: Study) -> list[Mapping[str, Any]]:
    return [
        {"values": dict(p.values), "state": p.state, "reason": p.reason} for p in study.proposals
    ]


def test_each_proposal_ends_whole_dropped_or_failed_and_racing_asks_less(run: Run) -> None:
    study = run(30)
    states = study.log.states  # type: ignore[attr-defined]
    assert states == {p.number: p.state for p in study.proposals}
    assert set(states.values()) == {"whole", "dropped", "failed"}
    failed = next(p for p in study.proposals if p.state == "failed")
    assert failed.reason == "it overflows" and failed.outcome(study.bench.race).startswith("failed")
    whole = run(30, "everything", shares=(1.0,))
    assert [p.values for p in study.proposals][:10] == [p.values for p in whole.proposals][:10]
    assert study.answers < 0.6 * whole.answers
    assert study.whole[0].scores.pooled >= whole.whole[0].scores.pooled - 0.02


def test_the_sampler_is_told_what_the_leader_got_less_how_far_one_is_behind(run: Run) -> None:
    study = run(12)
    told = {t.number + 1: t.value for t in study.optuna.trials}
    dropped = [p for p in study.proposals if p.state == "dropped"]
    assert dropped and all(told[p.number] < study.whole[0].scores.pooled for p in dropped)


@pytest.mark.parametrize("crew", [Alone, Several])
def test_a_study_goes_on_in_the_order_in_which_it_was_asked_and_told(
    run: Run, tmp_path: Path, crew: Any
) -> None:
    whole = run(12, "whole", crew=crew)
    run(5, "cut", crew=crew)
    order = tmp_path / "cut" / "order.jsonl"
    order.write_text(order.read_text() + '["ask", 6')  # a crash tore this
    assert [json.loads(line) for line in order.read_text().splitlines()[:-1]]
    longer = run(12, "cut", crew=crew)
    again = run(12, "cut", crew=Alone)
    assert table(again) == table(longer)
    if crew is Alone:
        assert table(longer) == table(whole)


class Elsewhere(Alone):
    """Another process, which says when it did what, and why it could not."""

    def next(self) -> TriedOut:
        outcome = super().next()
        log = f"at https://me:secret@host: {outcome.reason}" if outcome.reason else ""
        return dataclasses.replace(outcome, log=log, worker="worker 1", began=5.0, seconds=2.0)


def test_what_workers_did_and_why_one_failed_is_logged(run: Run) -> None:
    study = run(30, crew=Elsewhere)
    assert {span["worker"] for span in study.spans} == {"worker 1"}
    first = study.spans[0]
    assert (first["candidate"], first["seconds"]) == (study.proposals[0].label, 2.0)
    failed = next(p for p in study.proposals if p.state == "failed")
    texts = study.log.texts  # type: ignore[attr-defined]
    assert texts[f"failed/{failed.number}.log"].endswith("it overflows")
    assert "secret" not in str(texts)


def test_a_budget_ends_a_study_where_it_is_spent(run: Run) -> None:
    study = run(1000, budget="5 evaluations")
    assert 5 <= study.answers / ITEMS <= 6
    timed = run(1000, "timed", budget="10s")
    assert len(timed.proposals) == 10 + sum(p.state == "failed" for p in timed.proposals)
    waiting = [p for p in study.proposals if p.state == "waiting"]
    assert all("waits" in p.outcome(study.bench.race) for p in waiting)


def test_the_report_has_a_row_for_each_proposal(run: Run) -> None:
    study = run(12)
    rows = table_of(_rows(study), ["sources.a.weight", "sources.b.weight"])
    assert [row["number"] for row in rows] == list(range(1, 13))
    for row, proposal in zip(rows, study.proposals, strict=True):
        assert row["sources.a.weight"] == proposal.values["sources.a.weight"]
        assert row["rung"] == proposal.rung(study.bench.race) and row["state"] == proposal.state
        if row["score"] is not None:
            assert row["low"] <= row["score"] <= row["high"]


def test_the_page_has_pictures_and_a_table(run: Run) -> None:
    study = run(12)
    assert set(pictures(study)) == {"importances", "slice", "parallel_coordinate"}
    text = csv(table_of(_rows(study), ["sources.a.weight", "sources.b.weight"]))
    first, *lines = text.splitlines()
    assert first == (
        "number,state,rung,answers,score,low,high,sources.a.weight,sources.b.weight,reason"
    )
    assert len(lines) == 12
    points = curves(study)["study/best"]
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    assert points[-1][1] == study.whole[0].scores.pooled


def _rows(study: Study) -> list[dict[str, Any]]:
    study.baselines.sources = {"source-a": study.whole[0].stages}
    rows: list[dict[str, Any]] = report(study, [], "a")["trials"]
    return rows


@pytest.mark.parametrize(
    ("text", "evaluations", "seconds"),
    [("2h", None, 7200.0), ("30m", None, 1800.0), ("1.5 evaluations", 1.5, None), ("", None, None)],
)
def test_a_budget_is_a_time_or_a_number_of_evaluations(
    text: str, evaluations: float | None, seconds: float | None
) -> None:
    budget = read_budget(text)
    assert (budget.evaluations, budget.seconds) == (evaluations, seconds)
