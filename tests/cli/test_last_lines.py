"""The last lines of run and search: what the numbers say, and what follows from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import make_scores

from mergeops.cli.options import Call
from mergeops.cli.run import print_search, print_trials
from mergeops.recipe import Recipe
from mergeops.report import leaderboard_of
from mergeops.search import SearchResult
from mergeops.tracking import Trial

RECIPE = Recipe.from_dict({"method": "linear", "sources": {"a": "x", "b": "y"}})


def trial(right: int | None, parent: int = 20, **facts: Any) -> Trial:
    """Of 40 items; its one parent has ``parent`` of them right."""
    scores = None if right is None else make_scores(right={"sums": right}, n=40)
    parents = {} if right is None else {"a": make_scores("a", right={"sums": parent}, n=40)}
    board = leaderboard_of({"linear": scores}, parents) if scores else None
    whole: dict[str, Any] = {
        "name": "linear",
        "plan_digest": "0" * 64,
        "run_id": "r" * 32,
        "checkpoint": Path("work/merges/0"),
        "registered": "merged/3" if scores else "",
        "scores": scores,
        "parents": parents,
        "leaderboard": board,
    }
    return Trial(**{**whole, **facts})


def said(capsys: pytest.CaptureFixture[str], *trials: Trial, **call: Any) -> str:
    recipe = call.pop("recipe", RECIPE)
    print_trials(Call(**call), [recipe] * len(trials), trials)
    out = capsys.readouterr().out
    # Lines are filled to the terminal's width.
    return " ".join(out.split())


def test_a_better_merge_is_sent_to_the_gate_by_its_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(capsys, trial(35))
    assert "better: linear better than the best parent a: +0.375 [" in text
    assert text.endswith("next: mergeops promote merged --version 3 asks the confirm part")


def test_the_next_command_finds_the_same_server(capsys: pytest.CaptureFixture[str]) -> None:
    tracking = dataclasses.replace(RECIPE.tracking, uri="sqlite:///my runs.db", experiment="e")
    recipe = dataclasses.replace(RECIPE, tracking=tracking)
    text = said(capsys, trial(35), recipe=recipe, config_dir=Path("conf"))
    assert (
        "mergeops promote merged --version 3 --config-dir conf "
        "'tracking.uri=sqlite:///my runs.db' tracking.experiment=e asks"
    ) in text


def test_a_password_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tracking = dataclasses.replace(RECIPE.tracking, uri="https://me:secret@host")
    recipe = dataclasses.replace(RECIPE, tracking=tracking)
    assert "secret" not in said(capsys, trial(35), recipe=recipe)


@pytest.mark.parametrize(("right", "word"), [(19, "not shown"), (2, "worse")])
def test_a_merge_below_its_best_parent_is_not_sent_to_the_gate(
    right: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, trial(right))
    assert f"{word}: linear {word}" in text
    assert "promote" not in text
    assert "next: try another method (method=NAME), fewer sources (only=[A,B])" in text


def test_an_unscored_merge_says_so_and_that_it_is_no_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(capsys, trial(None))
    assert "version not registered" in text
    assert "not scored: evaluate.tasks is empty" in text
    assert "evaluate.tasks=[held.txt]" in text
    assert "become no version, but with tracking.register=unscored" in text
    tracking = dataclasses.replace(RECIPE.tracking, register="unscored")
    recipe = dataclasses.replace(RECIPE, tracking=tracking)
    text = said(capsys, trial(None, registered="merged/1"), recipe=recipe)
    assert "not scored" in text and "become no version" not in text


def test_of_several_the_best_is_judged_as_the_best_of_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    worst = trial(22, plan_digest="1" * 64, registered="merged/4")
    text = said(capsys, worst, trial(35))
    assert "better: linear, the best of 2 merges on these very items better than" in text
    assert "--version 3 asks" in text


def test_pages_are_linked_where_a_server_serves_them(capsys: pytest.CaptureFixture[str]) -> None:
    links = {"run": "http://mlflow/#/r", "version": "http://mlflow/#/v"}
    text = said(capsys, trial(35, links=links))
    assert "http://mlflow/#/r http://mlflow/#/v" in text
    assert trial(35, links=links).to_dict()["links"] == links


def test_a_search_ends_with_what_its_best_is_worth(capsys: pytest.CaptureFixture[str]) -> None:
    best = trial(35)
    rows = [{"added": "a", "dev": 0.875, "dev_interval": None, "kept": True}]
    print_search(Call(), RECIPE, SearchResult(best, None, [best, trial(21)], rows))
    text = " ".join(capsys.readouterr().out.split())
    assert "greedy_soup: the best is linear, 0.875 [" in text
    assert "better: linear, the best of 2 merges" in text
    print_search(Call(), RECIPE, SearchResult(None, "a", [best], rows))
    text = " ".join(capsys.readouterr().out.split())
    assert "no merge beats the source a on dev; it stays the best" in text
    assert "next: other sources" in text and "promote" not in text
