"""What goes into a trial: its tags, parents, parameters, and the files that pin them."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata
from typing import Any

from mergeops.recipe import Recipe, plain
from mergeops.sources import Source
from mergeops.store import flatten, hidden, hidden_facts, log_inputs, log_params, tag_value
from mergeops.tracking.parents import ensure_parent_model
from mergeops.tracking.pending import Pending
from mergeops.tracking.tracked_trial import TrackedTrial, step

PARENT_RUN = "mlflow.parentRunId"
"""The tag that nests a run below another in the UI."""
VERSIONS_OF = ("mergeops", "torch", "transformers", "safetensors", "mlflow", "lm-eval")


def trial_tags(kept: Pending) -> dict[str, str]:
    """The tags of a new trial's run: what it is, and the training runs that it merges."""
    recipe = kept.recipe
    tags = {
        "mergeops.role": "merge",
        "mergeops.method": recipe.made_by,
        "mergeops.sources": tag_value(", ".join(_weighted(recipe))),
        **hidden_facts({"plan_digest": kept.plan_digest, "recipe_sha256": recipe.sha256()}),
    }
    if kept.parent_run_id:
        tags[PARENT_RUN] = kept.parent_run_id
    runs = []
    for name, source in kept.sources.items():
        if source.run_id:
            own = recipe.sources[name].parameters.get("weight")
            default = getattr(recipe.method.parameters, "weight", "default")
            weight = default if own is None else plain(own)
            weight = recipe.made_by if recipe.tool else weight
            tags[hidden(f"mergeops.parent.{source.run_id}")] = tag_value(weight)
            runs.append(source.run_id)
    if runs:
        # MLflow cannot search runs by input model, but by tag.
        tags |= hidden_facts({"parent_run_ids": ",".join(runs)})
    return tags


def weight_of(recipe: Recipe, source: str) -> float | None:
    """A source's weight; None where it is not one number."""
    if recipe.tool is not None:
        return None
    default = getattr(recipe.method.parameters, "weight", None)
    weight = recipe.sources[source].parameters.get("weight", default)
    return weight if isinstance(weight, float) else None


@step()
def log_trial_inputs(trial: TrackedTrial, kept: Pending) -> None:
    """Log parents, parameters, recipe, plan and lock."""
    from mlflow.entities import LoggedModelInput

    tracking, client, recipe = trial.tracking, trial.tracking.client, kept.recipe
    models = {name: ensure_parent_model(tracking, source) for name, source in kept.inputs.items()}
    inputs = [LoggedModelInput(model_id) for model_id in models.values()]
    log_inputs(client, trial.run_id, trial.check_owner, models=inputs)
    log_params(client, trial.run_id, _params(recipe), trial.check_owner)
    trial.keep(parent_model_ids=",".join(models.values()), parents=",".join(models))
    trial.log_recipe(recipe)
    trial.log_json(kept.plan, "plan.json")
    lock = {
        "plan_digest": trial.plan_digest,
        "recipe_sha256": recipe.sha256(),
        "parents": {name: _pinned(source, models[name]) for name, source in kept.inputs.items()},
        "versions": versions(),
    }
    trial.log_json(lock, "lock.json")


def _weighted(recipe: Recipe) -> list[str]:
    weights = {name: weight_of(recipe, name) for name in recipe.sources}
    return [name if weight is None else f"{name} {weight:g}" for name, weight in weights.items()]


def _params(recipe: Recipe) -> dict[str, str]:
    raw = recipe.weights_dict()
    if recipe.tool is not None:
        tool = raw.pop("tool")
        return {"method": tool["name"], **flatten({tool["name"]: tool["arguments"], **raw})}
    method = raw.pop("method")
    name = method.pop("name")
    return {"method": name, **flatten({"method": method, **raw})}


def _pinned(source: Source, model_id: str) -> dict[str, Any]:
    return {
        "uri": source.uri,
        "sha256": source.sha256,
        "path": str(source.path),
        "adapter_base": str(source.adapter_base) if source.adapter_base else None,
        "run_id": source.run_id,
        "model_id": source.model_id,
        "tracked_model_id": model_id,
        "registered": source.registered,
        "revision": source.revision,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a merge depends on."""
    installed = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed
