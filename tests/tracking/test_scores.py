"""Scores reach runs and models once, and come back as they were."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import Case, make_scores

from mergeops.errors import TrackingError
from mergeops.scores import CORPUS, MEAN, UNITS, UNKNOWN, GroupRule, Scores
from mergeops.scores.intervals import Estimate
from mergeops.tracking import log_parent, pooled_estimate, score_log
from mergeops.tracking.score_log import (
    dataset_digest,
    entries,
    read_scores,
    scored_runs,
)


@pytest.fixture
def trial(case: Case) -> Any:
    with case.trial() as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
        yield log


def test_each_task_has_value_stderr_and_a_dataset_of_its_own() -> None:
    found = {e.key: (e.value, e.dataset) for e in entries(make_scores(right={"dates": 4}))}
    assert found == {
        "dates/acc": (0.5, "dates"),
        "dates/acc_stderr": (0.125, "dates"),
        "pooled_low": (pytest.approx(0.21521, abs=1e-5), "all tasks"),
        "pooled_high": (pytest.approx(0.78479, abs=1e-5), "all tasks"),
        "pooled": (0.5, "all tasks"),
    }


def test_a_runs_score_comes_back_with_its_interval_and_an_old_one_without() -> None:
    metrics = {e.key: e.value for e in entries(make_scores(right={"dates": 4}))}
    found = pooled_estimate(metrics)
    assert found is not None
    assert str(found) == "0.500 [0.215, 0.785]"
    assert pooled_estimate({"pooled": 0.5}) == Estimate(0.5, None)
    assert pooled_estimate({"dates/acc": 0.5}) is None


def test_confirm_keys_and_datasets_are_apart_from_dev() -> None:
    confirm = entries(make_scores(part="confirm", stderr=None))
    assert [e.key for e in confirm] == [
        "confirm/pooled",
        "confirm/pooled_low",
        "confirm/pooled_high",
        "confirm/arithmetic/acc",
        "confirm/dates/acc",
    ]
    assert [e.dataset for e in confirm] == [
        "all tasks (confirm)",
        "all tasks (confirm)",
        "all tasks (confirm)",
        "arithmetic (confirm)",
        "dates (confirm)",
    ]
    dev = {e.digest for e in entries(make_scores())}
    assert dev.isdisjoint(e.digest for e in confirm)


def test_the_pooled_dataset_depends_on_all_questions() -> None:
    def pooled(**right: int) -> str:
        return entries(make_scores(right=right))[0].digest

    assert pooled(arithmetic=1, dates=2) == pooled(dates=0, arithmetic=0)
    assert pooled(arithmetic=1) != pooled(arithmetic=1, dates=1)


def test_a_merge_does_not_become_its_own_input_by_being_scored(trial: Any) -> None:
    trial.log_scores(make_scores())
    run = trial.tracking.client.get_run(trial.run_id)
    inputs = [model.model_id for model in run.inputs.model_inputs]
    assert trial.model_id not in inputs
    assert len(inputs) == 3


def test_the_same_scores_twice_are_logged_once(trial: Any) -> None:
    client = trial.tracking.client
    for _ in range(2):
        trial.log_scores(make_scores())
    assert len(client.get_metric_history(trial.run_id, "pooled")) == 1
    assert len(client.get_logged_model(trial.model_id).metrics) == 7
    datasets = client.get_run(trial.run_id).inputs.dataset_inputs
    assert sorted(d.dataset.name for d in datasets) == ["all tasks", "arithmetic", "dates"]


def test_values_that_are_not_finite_are_named_and_not_logged_as_zero(trial: Any) -> None:
    scores = make_scores()
    tasks = dict(scores.tasks)
    tasks["dates"] = dataclasses.replace(tasks["dates"], value=math.nan, stderr=math.inf)
    trial.log_scores(dataclasses.replace(scores, tasks=tasks))
    run = trial.tracking.client.get_run(trial.run_id)
    assert "dates/acc" not in run.data.metrics
    assert run.data.tags["mergeops.not_finite.dev"] == "dates/acc, dates/acc_stderr"


def test_metric_names_that_mlflow_refuses_are_mapped(trial: Any) -> None:
    scores = make_scores(right={"code": 4})
    tasks = {"code": dataclasses.replace(scores.tasks["code"], metric="pass@1")}
    trial.log_scores(dataclasses.replace(scores, tasks=tasks))
    metrics = trial.tracking.client.get_run(trial.run_id).data.metrics
    pooled = {"pooled_low", "pooled_high", "pooled"}
    assert set(metrics) == {"code/pass_at_1", "code/pass_at_1_stderr"} | pooled


@pytest.mark.parametrize("part", ["dev", "confirm"])
def test_scores_come_back_as_they_were(trial: Any, part: str) -> None:
    scores = make_scores(part=part)
    tasks = dict(scores.tasks)
    items = tuple(dataclasses.replace(i, value=i.value / 3) for i in tasks["dates"].items)
    tasks["dates"] = dataclasses.replace(
        tasks["dates"], items=items, stderr=None, higher_is_better=False
    )
    scores = dataclasses.replace(scores, tasks=tasks)
    trial.log_scores(scores)
    assert read_scores(trial.tracking, trial.run_id, part) == scores


def test_items_are_a_table_that_mlflow_shows(trial: Any, tmp_path: Path) -> None:
    trial.log_scores(make_scores())
    path = trial.tracking.client.download_artifacts(trial.run_id, "samples/dev.csv", str(tmp_path))
    lines = Path(path).read_text().splitlines()
    assert lines[0] == "task,doc_id,value,doc_hash,prompt_hash,target_hash,cluster,weight"
    assert lines[1].startswith("arithmetic,0,1.0,")
    assert len(lines) == 1 + 16


def with_kinds(scores: Scores) -> Scores:
    """The same with a perplexity, a number of all items, and a group of both."""
    tasks = dict(scores.tasks)
    items = tasks["dates"].items
    tasks["dates"] = dataclasses.replace(
        tasks["dates"],
        metric="word_perplexity",
        items=tuple(dataclasses.replace(item, value=2.0, weight=4.0) for item in items),
        value=math.exp(0.5),
        kind=UNITS,
        by_log=True,
    )
    tasks["arithmetic"] = dataclasses.replace(
        tasks["arithmetic"],
        items=tuple(dataclasses.replace(i, value=0.0) for i in tasks["arithmetic"].items),
        kind=CORPUS,
        replicates=(0.7, 0.8),
        asked={"few-shot examples": "2"},
    )
    groups = {"both": GroupRule(("arithmetic", "dates"), by_size=False)}
    return dataclasses.replace(scores, tasks=tasks, groups=groups)


def test_scores_of_every_kind_come_back_as_they_were(trial: Any) -> None:
    made = with_kinds(make_scores())
    trial.log_scores(made)
    assert read_scores(trial.tracking, trial.run_id, "dev") == made


def test_a_group_has_the_number_that_lm_eval_gives_it() -> None:
    found = {e.key: (e.value, e.dataset) for e in entries(with_kinds(make_scores()))}
    assert found["both/acc"] == (pytest.approx((0.75 + math.exp(0.5)) / 2), "both")
    assert found["pooled"][0] == found["both/acc"][0]
    assert found["dates/word_perplexity"][0] == pytest.approx(math.exp(0.5))


def test_what_an_older_mergeops_logged_is_read_as_means_or_as_not_known(
    trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_scores()
    dates = dataclasses.replace(made.tasks["dates"], metric="word_perplexity", value=7.0)
    made = dataclasses.replace(made, tasks={**made.tasks, "dates": dates})
    monkeypatch.setattr(score_log, "TASK_FIELDS", score_log.TASK_FIELDS[:7])
    monkeypatch.setattr(score_log, "ITEM_COLUMNS", score_log.ITEM_COLUMNS[:7])
    trial.log_scores(made)
    found = read_scores(trial.tracking, trial.run_id, "dev")
    assert {name: task.kind for name, task in found.tasks.items()} == {
        "arithmetic": MEAN,
        "dates": UNKNOWN,
    }
    assert found.tasks["arithmetic"] == made.tasks["arithmetic"]


def test_scores_that_were_never_logged_are_an_error(trial: Any) -> None:
    with pytest.raises(TrackingError, match="could not download artifacts"):
        read_scores(trial.tracking, trial.run_id, "dev")


def test_a_damaged_artifact_says_so(trial: Any) -> None:
    trial.log_scores(make_scores())
    trial.log_text("{}", "scores/dev.json")
    with pytest.raises(TrackingError, match=r"scores/dev.json .* are not what mergeops wrote"):
        read_scores(trial.tracking, trial.run_id, "dev")


def test_everything_scored_is_found_with_its_role(case: Case) -> None:
    case.whole()
    log_parent(case.tracking, case.base, make_scores("base", part="confirm"))
    dev = scored_runs(case.tracking)
    assert sorted((s.name, s.kind) for s in dev) == [
        ("base", "base"),
        ("dates", "source"),
        ("math", "source"),
        ("task_arithmetic density=0.5", "merge"),
    ]
    assert [s.name for s in scored_runs(case.tracking, "confirm")] == ["base"]


def test_a_dataset_digest_is_short_enough_to_read() -> None:
    assert dataset_digest("a" * 64) == "a" * 12
    assert re.fullmatch("[0-9a-f]{12}", dataset_digest("a" * 64, "b" * 64))
