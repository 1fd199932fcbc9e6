"""Comparing experiments: who can stand on one leaderboard, and what is said of the others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.tracking_case import Case, make_scores, make_source

from mergeops.errors import TrackingError
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
