"""Comparing experiments: who can stand on one leaderboard, and what is said of the others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.tracking_case import Case, make_scores, make_source

from mergeops.errors import TrackingError
from mergeops.scores import Scores
from mergeops.store.connection import connect
from mergeops.tracking import log_parent, score_log
from mergeops.tracking.compare import OLD_KIND, OTHER_QUESTIONS, compare_experiments


def other_experiment(case: Case, name: str) -> Case:
    tracking = connect(dataclasses.replace(case.tracking.spec, experiment=name))
    return dataclasses.replace(case, tracking=tracking)


def test_a_parent_that_two_experiments_scored_is_one_row(case: Case) -> None:
    case.whole()
    other_experiment(case, "more").whole(name="ties")
    found = compare_experiments(case.tracking.spec, ["merges", "more"])
    names = {(row.name, row.kind) for row in found.board.rows}
    assert names == {
        ("task_arithmetic density=0.5", "merge"),
        ("ties", "merge"),
        ("base", "base"),
        ("math", "source"),
        ("dates", "source"),
    }
    origins = {row.name: row.origin for row in found.board.rows}
    assert origins["ties"] is not None and origins["ties"].experiment == "more"
    assert found.to_dict()["experiments"] == ["merges", "more"]


def test_two_merges_of_one_name_are_told_apart_by_their_experiments(case: Case) -> None:
    case.whole(name="ties")
    other_experiment(case, "more").whole(name="ties")
    found = compare_experiments(case.tracking.spec, ["merges", "more"])
    merges = {row.name for row in found.board.rows if row.kind == "merge"}
    assert merges == {"ties (merges)", "ties (more)"}


def test_a_model_that_answered_other_questions_is_left_out_by_name(case: Case) -> None:
    log_parent(case.tracking, make_source("old"), make_scores("old", n=4))
    case.whole()
    found = compare_experiments(case.tracking.spec)
    assert [(one.name, one.reason) for one in found.left_out] == [("old", OTHER_QUESTIONS)]
    assert "old" not in {row.name for row in found.board.rows}


def with_metric(scores: Scores, metric: str, chosen: str) -> Scores:
    """The same items by another metric, or by another filter of the same."""
    tasks = {
        name: dataclasses.replace(task, metric=metric, chosen=chosen)
        for name, task in scores.tasks.items()
    }
    return dataclasses.replace(scores, tasks=tasks)


@pytest.mark.parametrize(
    ("metric", "chosen"), [("acc_norm", "acc_norm,none"), ("acc", "acc,flexible")]
)
def test_another_metric_or_filter_on_the_same_items_is_another_column(
    metric: str, chosen: str, case: Case
) -> None:
    case.whole()
    usual = make_scores("old")
    other = with_metric(usual, metric, chosen)
    run_id = log_parent(case.tracking, make_source("old"), other)
    found = compare_experiments(case.tracking.spec)
    # The newest says what is compared.
    assert {row.name for row in found.board.rows} == {"old"}
    assert {one.reason for one in found.left_out} == {OTHER_QUESTIONS}
    for mine, theirs in zip(score_log.entries(usual), score_log.entries(other), strict=True):
        assert mine.dataset == theirs.dataset
        assert mine.digest != theirs.digest
    assert score_log.read_scores(case.tracking, run_id, "dev").tasks["dates"].chosen == chosen


def test_a_perplexity_that_an_older_mergeops_took_for_a_mean_is_left_out(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_scores("old")
    dates = dataclasses.replace(old.tasks["dates"], metric="word_perplexity", value=7.0)
    with monkeypatch.context() as older:
        older.setattr(score_log, "TASK_FIELDS", score_log.TASK_FIELDS[:7])
        older.setattr(score_log, "ITEM_COLUMNS", score_log.ITEM_COLUMNS[:7])
        scores = dataclasses.replace(old, tasks={**old.tasks, "dates": dates})
        log_parent(case.tracking, make_source("old"), scores)
    with pytest.raises(
        TrackingError, match="no readable scores on the dev part; old: has scores of"
    ):
        compare_experiments(case.tracking.spec)
    case.whole()
    found = compare_experiments(case.tracking.spec)
    assert [(one.name, one.reason) for one in found.left_out] == [("old", OLD_KIND.format("dates"))]
    assert "old" not in {row.name for row in found.board.rows}


def test_scores_that_are_gone_from_the_artifact_store_leave_out_only_their_model(
    case: Case, tmp_path: Path
) -> None:
    run_id, _ = case.whole()
    shutil.rmtree(tmp_path / "store" / "mlartifacts" / "merges" / run_id / "artifacts" / "scores")
    found = compare_experiments(case.tracking.spec)
    assert [one.name for one in found.left_out] == ["task_arithmetic density=0.5"]
    assert found.left_out[0].reason.startswith("has scores that cannot be read: ")
    assert {row.kind for row in found.board.rows} == {"base", "source"}


def test_without_any_scores_it_says_what_to_do(case: Case) -> None:
    with pytest.raises(TrackingError, match="'merges' has no scores on the dev part yet; run a"):
        compare_experiments(case.tracking.spec)
    with pytest.raises(TrackingError, match="nowhere"):
        compare_experiments(case.tracking.spec, ["nowhere"])
