"""Base and sources as models and runs of the experiment, so that they stand beside their merges."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.store import (
    Tracking,
    elect,
    finish_external_model,
    flatten,
    hidden_facts,
    log_inputs,
    log_params,
    model_name,
    only_one,
    or_none,
    run_filters,
    with_tags,
)
from mergeops.tracking.logged_run import create_run
from mergeops.tracking.ownership import delete_model, run_age
from mergeops.tracking.score_log import log_scores

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run


def role_of(source: Source) -> str:
    """``base`` or ``source``."""
    return "base" if source.name == "base" else "source"


def ensure_parent_model(tracking: Tracking, source: Source) -> str:
    """The LoggedModel of a base or source in the experiment: found by weights and role, or made.

    It points at the checkpoint where it lies; no bytes are copied. A source that has a model in
    this experiment already, as a merge has, is that model.

    Returns:
        The model's id.
    """
    client = tracking.client
    own = _model_of_this_experiment(tracking, source)
    if own is not None:
        return own
    wanted = with_tags(weights_sha256=source.sha256, role=role_of(source))
    model = _elected_model(tracking, wanted)
    if model is None:
        created = client.create_logged_model(
            tracking.experiment_id,
            name=model_name(source.name),
            source_run_id=_known_run(tracking, source.run_id),
            tags={
                "mergeops.role": role_of(source),
                "mergeops.weights_sha256": source.sha256,
                "mlflow.model.isExternal": "true",
                **({"mergeops.adopted_model_id": source.model_id} if source.model_id else {}),
            },
            params=flatten({"role": role_of(source), **_facts(source)}),
            model_type=role_of(source),
        )
        # Not simply the one that was made: another process may have been faster.
        model = finish_external_model(client, _elected_model(tracking, wanted) or created)
        # MLflow stamps a model before others see it: an older one may have come to light since.
        elected = _elected_model(tracking, wanted) or model
        if model.model_id == created.model_id != elected.model_id:
            delete_model(tracking, created)
        model = elected
    return str(finish_external_model(client, model).model_id)


def log_parent(tracking: Tracking, source: Source, scores: Scores | None = None) -> str:
    """The run of a base or source, with its scores; found by weights and role, or made.

    Returns:
        The run's id. For a merge of this experiment that is used as a source: its trial's run.
    """
    # Trials that run side by side share their parents.
    with only_one(source.name, tracking.place, tracking.experiment_id, source.sha256, wait=True):
        return _log_parent(tracking, source, scores)


def _log_parent(tracking: Tracking, source: Source, scores: Scores | None) -> str:
    from mlflow.entities import LoggedModelInput

    client = tracking.client
    model_id = ensure_parent_model(tracking, source)
    trial_run_id = _trial_of(tracking, model_id)
    run_id = trial_run_id or _parent_run(tracking, source, model_id)
    if trial_run_id is None and client.get_run(run_id).info.status != "FINISHED":
        log_inputs(client, run_id, models=[LoggedModelInput(model_id)])
        log_params(client, run_id, _facts(source))
    if scores is not None:
        log_scores(tracking, run_id, model_id, scores)
    if trial_run_id is None and client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _parent_run(tracking: Tracking, source: Source, model_id: str) -> str:
    def elected() -> Run | None:
        runs = tracking.search_runs(*run_filters(role_of(source), weights_sha256=source.sha256))
        return elect(runs, remove, run_age)

    def remove(run: Run) -> None:
        if not run.data.metrics:
            tracking.client.delete_run(run.info.run_id)

    run = elected()
    if run is None:
        facts = {"weights_sha256": source.sha256, "model_id": model_id}
        facts |= {"source_run_id": source.run_id} if source.run_id else {}
        tags = {"mergeops.role": role_of(source), **hidden_facts(facts)}
        created = create_run(tracking, source.name, tags)
        run = elected() or created
    return str(run.info.run_id)


def _facts(source: Source) -> dict[str, str]:
    facts = {
        "uri": source.uri,
        "path": str(source.path),
        "sha256": source.sha256,
        "run_id": source.run_id,
        "registered": source.registered,
        "revision": source.revision,
        "adapter_base": str(source.adapter_base) if source.adapter_base else None,
    }
    return {name: value for name, value in facts.items() if value}


def _model_of_this_experiment(tracking: Tracking, source: Source) -> str | None:
    if not source.model_id:
        return None
    model = or_none(partial(tracking.client.get_logged_model, source.model_id))
    if model is None or str(model.experiment_id) != tracking.experiment_id:
        return None
    if not _is_merge(model) and "mergeops.weights_sha256" not in model.tags:
        tags = {"mergeops.role": role_of(source), "mergeops.weights_sha256": source.sha256}
        tracking.client.set_logged_model_tags(model.model_id, tags)
    return str(model.model_id)


def _trial_of(tracking: Tracking, model_id: str) -> str | None:
    model = tracking.client.get_logged_model(model_id)
    return str(model.source_run_id) if _is_merge(model) else None


def _is_merge(model: LoggedModel) -> bool:
    return bool(model.tags.get("mergeops.role") == "merge")


def _known_run(tracking: Tracking, run_id: str | None) -> str | None:
    """The run, where this server has it."""
    is_known = run_id and or_none(partial(tracking.client.get_run, run_id))
    return run_id if is_known else None


def _elected_model(tracking: Tracking, filter_string: str) -> LoggedModel | None:
    def remove(model: LoggedModel) -> None:
        if str(model.status) != "READY":
            delete_model(tracking, model)

    models = tracking.client.search_logged_models([tracking.experiment_id], filter_string)
    return elect(models, remove)
