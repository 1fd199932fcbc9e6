"""One version for each plan, tagged with where it came from."""

from __future__ import annotations

import json

import pytest
from support.tracking_case import Case, make_scores

from mergeops.errors import TrackingError
from mergeops.report import leaderboard_of, standing_of
from mergeops.store import own_tags
from mergeops.tracking import log_leaderboard, register_trial
from mergeops.tracking.versions import find_registered_model, find_version, register


def test_a_version_says_where_it_came_from(case: Case) -> None:
    run_id, version = case.whole()
    found = find_version(case.tracking, "skills", version)
    assert found.run_id == run_id
    assert found.source.startswith("models:/m-")
    assert found.description == "0.625 [0.386, 0.815] on dev; task_arithmetic density=0.5"
    shown = {
        "mergeops.status": "candidate",
        "mergeops.score": "0.625 [0.386, 0.815] on dev",
    }
    # A version's page shows no tag that begins with "mlflow."; the list of versions shows it cut.
    assert found.tags.keys() == {*shown, "mlflow.mergeops.facts"}
    assert own_tags(found.tags) == shown | {
        "mergeops.role": "merge",
        "mergeops.run_id": run_id,
        "mergeops.plan_digest": case.digest,
        "mergeops.weights_sha256": make_scores("merge").weights_sha256,
        "mergeops.method": "task_arithmetic",
        "mergeops.parents": "base,math,dates",
        "mergeops.parent_run_ids": case.sources["math"].run_id,
    }


def test_a_reader_of_a_version_sees_four_short_tags_and_the_result_first(case: Case) -> None:
    parents = {"math": make_scores("math", right={"arithmetic": 6, "dates": 2})}
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        log.log_scores(make_scores())
        board = leaderboard_of({log.name: make_scores()}, parents)
        log_leaderboard(log, board, standing_of(make_scores(), parents))
        version = register_trial(log)
    found = find_version(case.tracking, "skills", version)
    shown = {tag: value for tag, value in found.tags.items() if not tag.startswith("mlflow.")}
    assert shown == {
        "mergeops.status": "candidate",
        "mergeops.score": "0.625 [0.386, 0.815] on dev",
        "mergeops.difference": "+0.125 [-0.093, +0.360] to math",
        "mergeops.verdict": "not shown",
    }
    assert found.description.startswith(
        "0.625 [0.386, 0.815] on dev; not shown to be better than the best parent math: +0.125 ["
    )


def test_a_version_that_is_scored_later_shows_it(case: Case) -> None:
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        version = register_trial(log)
    assert "mergeops.score" not in find_version(case.tracking, "skills", version).tags
    assert case.whole()[1] == version
    tags = find_version(case.tracking, "skills", version).tags
    assert tags["mergeops.score"] == "0.625 [0.386, 0.815] on dev"


def test_the_models_page_links_to_its_version_once(case: Case) -> None:
    run_id, version = case.whole()
    case.whole()
    client = case.tracking.client
    model_id = own_tags(client.get_run(run_id).data.tags)["mergeops.model_id"]
    linked = client.get_logged_model(model_id).tags["mlflow.modelVersions"]
    assert json.loads(linked) == [{"name": "skills", "version": version}]


def test_another_plan_is_another_version_and_another_name_another_model(case: Case) -> None:
    assert case.whole()[1] == 1
    assert case.whole(plan_digest="e" * 64)[1] == 2
    with case.trial() as log:
        log.log_model(case.checkpoint, case.weights)
        assert register_trial(log, "elsewhere") == 1


def test_a_model_that_is_not_ready_is_not_registered(case: Case) -> None:
    with case.trial() as log:
        model = case.tracking.client.create_logged_model(case.tracking.experiment_id, name="half")
        with pytest.raises(TrackingError, match=r"is PENDING, not READY; only a complete upload"):
            register(case.tracking, "skills", log.run_id, model.model_id, description="")


def test_of_two_versions_that_raced_the_lower_number_counts(case: Case) -> None:
    run_id, version = case.whole()
    client = case.tracking.client
    first = client.get_model_version("skills", str(version))
    client.create_model_version("skills", first.source, run_id, tags=first.tags)
    assert case.whole() == (run_id, version)


def test_a_name_or_version_that_does_not_exist_is_named_with_what_does(case: Case) -> None:
    with pytest.raises(TrackingError, match=r"there is no registered model 'skils' at sqlite"):
        find_registered_model(case.tracking, "skils")
    case.whole()
    with pytest.raises(TrackingError, match=r"skills has no version 7; its versions: 1$"):
        find_version(case.tracking, "skills", 7)
