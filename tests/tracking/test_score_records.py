"""Scores in the tracking store, found by whoever asks the same."""

from __future__ import annotations

from mergeops.store.connection import Tracking, connect
from mergeops.tracking import ScoreRecords
from mergeops.tracking.score_records import EXPERIMENT

WEIGHTS, KEY, OTHER, WAY = "ab" * 32, "cd" * 32, "ef" * 32, "12" * 32


def test_a_record_is_found_by_another_connection(tracking: Tracking) -> None:
    ScoreRecords(tracking).keep(WEIGHTS, {KEY: '{"value": 0.5}'}, {KEY: WAY})
    again = ScoreRecords(connect(tracking.spec))
    assert again.find(WEIGHTS, [KEY, OTHER]) == {KEY: '{"value": 0.5}'}
    assert again.find(OTHER, [KEY]) == {}


def test_looking_makes_nothing(tracking: Tracking) -> None:
    assert ScoreRecords(tracking).find(WEIGHTS, [KEY]) == {}
    assert tracking.client.get_experiment_by_name(EXPERIMENT) is None


def test_one_model_has_one_finished_run(tracking: Tracking) -> None:
    records = ScoreRecords(tracking)
    records.keep(WEIGHTS, {KEY: "a"}, {KEY: WAY})
    records.keep(WEIGHTS, {OTHER: "b"}, {OTHER: WAY})
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    [run] = tracking.client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert records.find(WEIGHTS, [KEY, OTHER]) == {KEY: "a", OTHER: "b"}


def test_what_was_not_finished_is_not_found(tracking: Tracking) -> None:
    """The artifact is there, its tag is not: the process died in between."""
    records = ScoreRecords(tracking)
    records.keep(WEIGHTS, {KEY: "a"}, {KEY: WAY})
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    [run] = tracking.client.search_runs([experiment.experiment_id])
    tracking.client.delete_tag(run.info.run_id, f"mergeops.score.{KEY[:32]}")
    assert records.find(WEIGHTS, [KEY]) == {}
    assert records.alike(WEIGHTS, [WAY], []) == {}


def test_records_are_found_by_the_way_they_were_asked(tracking: Tracking) -> None:
    records = ScoreRecords(tracking)
    assert records.alike(WEIGHTS, [WAY], []) == {}
    records.keep(WEIGHTS, {KEY: "a", OTHER: "b"}, {KEY: WAY, OTHER: "34" * 32})
    assert records.alike(WEIGHTS, [WAY, "56" * 32], []) == {KEY: "a"}
    assert records.alike(WEIGHTS, [WAY], [KEY]) == {}
    assert records.alike(OTHER, [WAY], []) == {}


def test_the_page_of_the_experiment_says_what_it_is(tracking: Tracking) -> None:
    """Nobody asked for it, and it stands among the user's own."""
    ScoreRecords(tracking).keep(WEIGHTS, {KEY: "a"}, {KEY: WAY})
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert experiment.tags["mlflow.note.content"].startswith("Nothing to look at: mergeops keeps")
    tracking.client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    ScoreRecords(tracking).keep(WEIGHTS, {OTHER: "b"}, {OTHER: WAY})
    again = tracking.client.get_experiment(experiment.experiment_id)
    assert again.tags["mlflow.note.content"] == "ours"
