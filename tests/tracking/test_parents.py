"""Base and sources stand in the experiment as models and runs, each once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import Case, make_scores, make_source

from mergeops.errors import TrackingError
from mergeops.store import own_tags
from mergeops.tracking import log_parent
from mergeops.tracking.parents import ensure_parent_model


def test_a_parent_is_an_external_model_that_points_at_its_checkpoint(case: Case) -> None:
    source = dataclasses.replace(case.sources["math"], model_id="m-" + "a" * 32, registered="ft/3")
    model = case.tracking.client.get_logged_model(ensure_parent_model(case.tracking, source))
    assert (model.name, model.model_type, str(model.status)) == ("math", "source", "READY")
    assert model.source_run_id == source.run_id
    assert model.params["path"] == "/checkpoints/math"
    assert model.params["registered"] == "ft/3"
    assert model.params["role"] == "source"
    assert model.tags["mergeops.adopted_model_id"] == source.model_id
    assert model.tags["mlflow.model.isExternal"] == "true"


def test_equal_weights_in_the_same_role_are_one_model_whatever_they_are_called(case: Case) -> None:
    first = make_source("math", sha256="a" * 64)
    again = make_source("other_name", sha256="a" * 64)
    assert ensure_parent_model(case.tracking, first) == ensure_parent_model(case.tracking, again)


def test_a_base_and_a_source_of_equal_weights_are_two_models(case: Case) -> None:
    base = make_source("base", sha256="a" * 64)
    source = make_source("math", sha256="a" * 64)
    assert ensure_parent_model(case.tracking, base) != ensure_parent_model(case.tracking, source)


def test_an_older_model_that_comes_to_light_late_is_the_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source = case.tracking.client, make_source("math", sha256="a" * 64)
    older = ensure_parent_model(case.tracking, source)
    search, looks = client.search_logged_models, []

    def late(*arguments: Any, **more: Any) -> list[Any]:
        looks.append(arguments)
        models = list(search(*arguments, **more))
        # Before this process made its own, and when it looks once more at once.
        return [model for model in models if len(looks) > 2 or model.model_id != older]

    monkeypatch.setattr(client, "search_logged_models", late)
    assert ensure_parent_model(case.tracking, source) == older
    assert len(looks) == 3
    wanted = f"tags.`mergeops.weights_sha256` = '{source.sha256}'"
    [model] = search([case.tracking.experiment_id], wanted)
    assert model.model_id == older


def test_a_training_run_that_this_server_does_not_know_is_a_param_only(case: Case) -> None:
    source = make_source("math", run_id="f" * 32)
    model = case.tracking.client.get_logged_model(ensure_parent_model(case.tracking, source))
    assert not model.source_run_id
    assert model.params["run_id"] == "f" * 32


def test_a_parent_has_one_run_with_its_scores_on_run_and_model(case: Case) -> None:
    run_id = log_parent(case.tracking, case.base, make_scores("base"))
    assert log_parent(case.tracking, case.base, make_scores("base")) == run_id
    log_parent(case.tracking, case.base, make_scores("base", part="confirm"))
    client = case.tracking.client
    (run,) = client.search_runs([case.tracking.experiment_id])
    assert run.info.run_name == "base"
    assert run.info.status == "FINISHED"
    assert run.data.tags["mergeops.role"] == "base"
    assert run.data.metrics["arithmetic/acc"] == run.data.metrics["confirm/arithmetic/acc"] == 0.75
    assert len(client.get_metric_history(run_id, "arithmetic/acc")) == 1
    (model_input,) = client.get_run(run_id).inputs.model_inputs
    model = client.get_logged_model(model_input.model_id)
    assert {metric.key for metric in model.metrics} == set(run.data.metrics)
    assert not client.get_run(run_id).outputs.model_outputs


def test_a_merge_that_is_a_source_of_the_next_one_is_its_own_model_and_run(case: Case) -> None:
    run_id, version = case.whole()
    client = case.tracking.client
    model_id = own_tags(client.get_run(run_id).data.tags)["mergeops.model_id"]
    merged = make_source(
        "stage1", uri=f"models:/skills/{version}", run_id=run_id, model_id=model_id
    )
    assert ensure_parent_model(case.tracking, merged) == model_id
    before = len(client.search_runs([case.tracking.experiment_id]))
    assert log_parent(case.tracking, merged, make_scores("merge")) == run_id
    assert len(client.search_runs([case.tracking.experiment_id])) == before
    assert len(client.get_metric_history(run_id, "pooled")) == 1


def test_a_model_that_was_adopted_in_this_experiment_is_not_made_twice(case: Case) -> None:
    client, experiment = case.tracking.client, case.tracking.experiment_id
    adopted = client.create_logged_model(experiment, name="checkpoint-40").model_id
    source = dataclasses.replace(case.sources["math"], model_id=adopted)
    assert ensure_parent_model(case.tracking, source) == adopted
    assert len(client.search_logged_models([experiment])) == 1
    assert client.get_logged_model(adopted).tags["mergeops.weights_sha256"] == source.sha256


def test_the_models_tab_ranks_parents_and_merges_on_the_same_dataset(case: Case) -> None:
    case.whole()
    client = case.tracking.client
    models = client.search_logged_models(
        [case.tracking.experiment_id],
        order_by=[
            {"field_name": "metrics.pooled", "ascending": False, "dataset_name": "all tasks"}
        ],
    )
    assert len(models) == 4
    columns = [
        {(m.key, m.dataset_name, m.dataset_digest) for m in model.metrics} for model in models
    ]
    assert all(column == columns[0] for column in columns)


def test_an_unreachable_server_is_not_taken_for_an_unknown_run(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    def away(self: mlflow.MlflowClient, run_id: str) -> object:
        raise MlflowException("no answer")

    monkeypatch.setattr(mlflow.MlflowClient, "get_run", away)
    with pytest.raises(TrackingError, match="could not get run: no answer"):
        ensure_parent_model(case.tracking, case.sources["math"])


def test_an_adapter_says_what_it_applies_to(case: Case) -> None:
    adapter = dataclasses.replace(make_source("lora"), adapter_base=Path("/models/base"))
    model = case.tracking.client.get_logged_model(ensure_parent_model(case.tracking, adapter))
    assert model.params["adapter_base"] == "/models/base"
