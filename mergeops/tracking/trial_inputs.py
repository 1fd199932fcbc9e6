"""What goes into a trial: its tags, parents, parameters, and the files that pin them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mergeops.recipe import Recipe
from mergeops.secrets import redact
from mergeops.tracking.client import log_params, unless_raced
from mergeops.tracking.keys import flatten, param_value, tag_value
from mergeops.tracking.parents import ensure_parent_model, run_tags
from mergeops.values import plain

if TYPE_CHECKING:
    from mergeops.sources import Source
    from mergeops.tracking.trial_run import Trial

PARENT_RUN = "mlflow.parentRunId"
"""The tag that nests a run below another in the UI."""
VERSIONS_OF = ("mergeops", "torch", "transformers", "safetensors", "mlflow", "lm-eval")


def tags(
    recipe: Recipe,
    plan_digest: str,
    sources: Mapping[str, Source],
    name: str,
    parent_run_id: str | None,
) -> dict[str, str]:
    found = {
        **run_tags(name),
        "mergeops.role": "merge",
        "mergeops.plan_digest": plan_digest,
        "mergeops.recipe_sha256": recipe.sha256(),
        "mergeops.method": recipe.method.name,
    }
    if parent_run_id:
        found[PARENT_RUN] = parent_run_id
    runs = []
    for source_name, source in sources.items():
        if source.run_id:
            own = recipe.sources[source_name].parameters.get("weight")
            default = getattr(recipe.method.parameters, "weight", "default")
            weight = default if own is None else plain(own)
            found[f"mergeops.parent.{source.run_id}"] = tag_value(weight)
            runs.append(source.run_id)
    if runs:
        # MLflow cannot search runs by input model, but by tag.
        found["mergeops.parent_run_ids"] = tag_value(",".join(runs))
    return found


def log_inputs(trial: Trial, recipe: Recipe, plan: Mapping[str, Any]) -> None:
    import yaml
    from mlflow.entities import LoggedModelInput

    tracking, client = trial.tracking, trial.tracking.client
    parents = trial.parents
    models = {name: ensure_parent_model(tracking, source) for name, source in parents.items()}
    inputs = [LoggedModelInput(model_id) for model_id in models.values()]
    unless_raced(lambda: client.log_inputs(trial.run_id, models=inputs), trial.check_owner)
    log_params(client, trial.run_id, _params(recipe), trial.check_owner)
    trial.set_tags(parent_model_ids=",".join(models.values()), parents=",".join(parents))
    trial.log_text(yaml.safe_dump(_shown(recipe), sort_keys=False), "recipe.yaml")
    trial.log_json(plan, "plan.json")
    lock = {
        "plan_digest": trial.plan_digest,
        "recipe_sha256": recipe.sha256(),
        "parents": {name: _pinned(source, models[name]) for name, source in parents.items()},
        "versions": versions(),
    }
    trial.log_json(lock, "lock.json")


def _params(recipe: Recipe) -> dict[str, str]:
    raw = recipe.weights_dict()
    method = raw.pop("method")
    name = method.pop("name")
    return {"method": param_value(name), **flatten({**raw, "method": method})}


def _shown(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what is secret."""
    raw = recipe.to_dict()
    # A webhook's address and a command's arguments are secrets as a whole, and belong to whoever
    # promotes, not to the merge.
    raw["promote"].pop("hooks")
    shown: dict[str, Any] = redact(raw)
    return shown


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
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
