"""The page of a search: curves that can be logged twice, the best named, the picture honest."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.tracking_case import Case, make_scores

from mergeops.cli.run import print_search
from mergeops.report.leaderboard import Entry, Leaderboard, make_leaderboard
from mergeops.report.plots import search_figure
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.search.strategies import SearchResult, dev_columns
from mergeops.tracking import search_run
from mergeops.tracking.search_page import TrialLine, log_search

DIGEST = "5" * 64
LINES = [
    TrialLine(name, name[-1] * 32, f"skills/{i}")
    for i, name in enumerate(("soup of 2", "soup of $3$", "soup of 4"), 1)
]


def board() -> Leaderboard:
    right = {"soup of 2": 20, "soup of $3$": 30, "soup of 4": 25}
    merges = [
        Entry(name, "merge", make_scores(name, right={"arithmetic": hits}, n=40))
        for name, hits in right.items()
    ]
    parent = Entry("math", "source", make_scores("math", right={"arithmetic": 16}, n=40))
    return make_leaderboard([*merges, parent])


def test_a_search_logged_twice_has_each_step_once(case: Case, tmp_path: Path) -> None:
    for _ in range(2):
        with search_run(case.tracking, "soup", DIGEST, {}) as log:
            log_search(log, LINES, board(), higher_is_better=True)
    client = case.tracking.client
    assert curve(case, log.run_id, "steps/trial") == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert curve(case, log.run_id, "steps/best") == [(1, 0.5), (2, 0.75), (3, 0.75)]
    text = client.get_run(log.run_id).data.tags["mlflow.note.content"]
    assert text.startswith(
        "3 trials; the best merge is **soup of $3$**, 0.750 [0.598, 0.858] on dev, +0.350 ["
    )
    assert "`models:/skills/2`" in text
    plots = Path(client.download_artifacts(log.run_id, "plots", str(tmp_path)))
    assert sorted(path.name for path in plots.iterdir()) == ["scores.png", "search.png"]


def curve(case: Case, run_id: str, name: str) -> list[tuple[int, float]]:
    history = case.tracking.client.get_metric_history(run_id, name)
    return [(point.step, point.value) for point in history]


def test_the_curves_grow_trial_by_trial_while_the_search_runs(case: Case) -> None:
    with search_run(case.tracking, "soup", DIGEST, {}) as log:
        log.log_trial(0.75)
        assert curve(case, log.run_id, "steps/trial") == [(1, 0.75)]
        log.log_trial(0.5)
        assert curve(case, log.run_id, "steps/trial") == [(1, 0.75), (2, 0.5)]
        assert curve(case, log.run_id, "steps/best") == [(1, 0.75), (2, 0.75)]
        assert case.tracking.client.get_run(log.run_id).info.status == "RUNNING"


def test_a_search_that_goes_on_adds_the_missing_points_and_doubles_none(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt), search_run(case.tracking, "soup", DIGEST, {}) as log:
        log.log_trial(0.5)
        log.log_trial(0.75)
        raise KeyboardInterrupt
    with search_run(case.tracking, "soup", DIGEST, {}) as again:
        assert again.run_id == log.run_id
        # The finished trials come by first, from what is kept of them.
        again.log_trial(0.5)
        again.log_trial(0.75)
        again.log_trial(0.625)
        log_search(again, LINES, board(), higher_is_better=True)
    assert curve(case, log.run_id, "steps/trial") == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert curve(case, log.run_id, "steps/best") == [(1, 0.5), (2, 0.75), (3, 0.75)]


def test_where_lower_is_better_the_best_so_far_falls(case: Case) -> None:
    with search_run(case.tracking, "soup", DIGEST, {}) as log:
        log.log_steps([3.0, 2.0, float("nan"), 2.5], higher_is_better=False)
    assert curve(case, log.run_id, "steps/trial") == [(1, 3.0), (2, 2.0), (4, 2.5)]
    assert [value for _, value in curve(case, log.run_id, "steps/best")] == [3.0, 2.0, 2.0, 2.0]


def test_the_picture_has_the_trials_in_order_and_the_best_parent_as_a_line() -> None:
    rows = {row.name: row for row in board().rows}
    tried = [rows[name] for name in ("soup of 2", "soup of $3$", "soup of 4")]
    (axes,) = search_figure(tried, board(), higher_is_better=True).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "soup of 2",
        r"soup of \$3\$",
        "soup of 4",
    ]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines["best so far"] == [0.5, 0.75, 0.75]
    assert lines["best single parent: math"] == [0.4, 0.4]


@pytest.mark.parametrize(
    ("higher_is_better", "best_so_far", "best"),
    [(True, [3.0, 3.0, 3.0, 4.0], "d"), (False, [3.0, 3.0, 2.0, 2.0], "c")],
)
def test_a_trial_without_a_finite_score_never_leads(
    case: Case, higher_is_better: bool, best_so_far: list[float], best: str
) -> None:
    values = {"0": math.nan, "a": 3.0, "b": math.nan, "c": 2.0, "d": 4.0}
    entries = [Entry(name, "merge", one_task(v, higher_is_better)) for name, v in values.items()]
    made = make_leaderboard(entries)
    rows = {row.name: row for row in made.rows}
    (axes,) = search_figure([rows[n] for n in values], made, higher_is_better).axes
    (line,) = [found for found in axes.get_lines() if found.get_label() == "best so far"]
    assert math.isnan(line.get_ydata()[0])
    assert list(line.get_ydata())[1:] == best_so_far
    lines = [TrialLine(name, name * 32, f"skills/{i}") for i, name in enumerate(values)]
    with search_run(case.tracking, "soup", DIGEST, {}) as log:
        log_search(log, lines, made, higher_is_better)
    text = case.tracking.client.get_run(log.run_id).data.tags["mlflow.note.content"]
    assert text.startswith(f"5 trials; the best merge is **{best}**, ")


def one_task(value: float, higher_is_better: bool) -> Scores:
    items = (ItemResult(0, "d", "p", "t", value), ItemResult(1, "e", "q", "u", value))
    task = TaskScore("a", "perplexity", value, None, items, "1", "x", higher_is_better)
    return Scores("0" * 64, "dev", {"a": task}, {})


def test_each_step_in_the_terminal_has_its_score_with_its_interval(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = one_task(math.nan, True)
    rows = [
        {"added": "math", "size": 1, **dev_columns(make_scores(right={"a": 4})), "kept": True},
        {"added": "dates", "size": 2, **dev_columns(broken), "kept": False},
    ]
    print_search("greedy_soup", SearchResult(None, "math", [], rows))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["added", "size", "dev", "kept"]
    assert [" ".join(line.split()) for line in lines[3:5]] == [
        "math 1 0.500 [0.215, 0.785] yes",
        "dates 2 - no",
    ]
    assert rows[0]["dev"] == 0.5
    assert rows[0]["dev_interval"] == pytest.approx([0.21521, 0.78479], abs=1e-5)
    assert (rows[1]["dev"], rows[1]["dev_interval"]) == (None, None)
