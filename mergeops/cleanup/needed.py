"""What in MLflow needs a merge: registered versions, their aliases, and running trials."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.store import Tracking, own_tags, pages, with_tags

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

UNWANTED = ("rejected", "superseded")
"""Statuses of a version that, without an alias, needs its merge no longer."""


@dataclass(frozen=True)
class MergeUse:
    """What MLflow says of one plan's merge."""

    weights_sha256: str
    needed: str
    """What needs it; empty where nothing does."""
    unneeded: str
    """Why nothing does."""
    experiment_ids: tuple[str, ...] = ()
    """Of its runs."""


def references(tracking: Tracking, plan_digests: set[str]) -> dict[str, MergeUse]:
    """For each plan that the server knows a run or a version of, whether its merge is needed.

    Looks through all experiments and registered models, deleted runs included.

    Raises:
        TrackingError: the server cannot be asked.
    """
    every_run = list(_merge_runs(tracking))
    runs = [run for run in every_run if _plan(run) in plan_digests]
    versions = list(_versions(tracking))
    parents_in_use = _parents_of_running(every_run)
    # One answer for all versions of a model: an alias that moves between two would be seen at none.
    aliases_of = functools.cache(lambda name: tracking.client.get_registered_model(name).aliases)
    uses = {}
    for digest in plan_digests:
        own_runs = [run for run in runs if _plan(run) == digest]
        own_versions = [v for v in versions if _is_of(v, digest, own_runs)]
        if own_runs or own_versions:
            uses[digest] = _use(aliases_of, own_runs, own_versions, parents_in_use)
    return uses


def _use(
    aliases_of: Callable[[str], Mapping[str, str]],
    runs: list[Run],
    versions: list[ModelVersion],
    in_use: set[str],
) -> MergeUse:
    tags = [own_tags(one) for one in (*(r.data.tags for r in runs), *(v.tags for v in versions))]
    digests = [t["mergeops.weights_sha256"] for t in tags if "mergeops.weights_sha256" in t]
    experiments = tuple(sorted({str(run.info.experiment_id) for run in runs}))
    needed = []
    for version in versions:
        number = str(version.version)
        aliases = sorted(a for a, n in aliases_of(version.name).items() if str(n) == number)
        status = version.tags.get("mergeops.status", "")
        label = f"{version.name}/{version.version}"
        if aliases:
            needed.append(f"{label} is {', '.join(f'@{alias}' for alias in aliases)}")
        elif status not in UNWANTED:
            needed.append(f"{label} is {status or 'registered'}")
    for run in runs:
        name = f"run {run.info.run_id[:8]}"
        if _is_running(run):
            needed.append(f"{name} is RUNNING")
        if {run.info.run_id, own_tags(run.data.tags).get("mergeops.model_id", "")} & in_use:
            needed.append(f"a trial that is RUNNING merges {name}")
    if versions:
        unneeded = ", ".join(
            f"{v.name}/{v.version} is {v.tags.get('mergeops.status')}" for v in versions
        )
    elif all(run.info.lifecycle_stage == "deleted" for run in runs):
        unneeded = "its run is deleted in MLflow"
    else:
        run = next(run for run in runs if run.info.lifecycle_stage == "active")
        unneeded = f"run {run.info.run_id[:8]} is {run.info.status} and has no registered version"
    return MergeUse(digests[0] if digests else "", "; ".join(needed), unneeded, experiments)


def _plan(run: Run) -> str:
    return own_tags(run.data.tags).get("mergeops.plan_digest", "")


def _is_of(version: ModelVersion, plan_digest: str, runs: list[Run]) -> bool:
    """Whether a version is the plan's: by its tag, else by the model or run that it was made of,
    as in MLflow's own pages anybody can register one."""
    if own_tags(version.tags).get("mergeops.plan_digest") == plan_digest:
        return True
    models = {own_tags(run.data.tags).get("mergeops.model_id") for run in runs} - {None}
    sources = {f"models:/{model_id}" for model_id in models}
    return version.source in sources or version.run_id in {run.info.run_id for run in runs}


def _parents_of_running(runs: list[Run]) -> set[str]:
    parents: set[str] = set()
    for run in filter(_is_running, runs):
        tags = own_tags(run.data.tags)
        for tag in ("mergeops.parent_run_ids", "mergeops.parent_model_ids"):
            parents |= {parent for parent in tags.get(tag, "").split(",") if parent}
    return parents


def _is_running(run: Run) -> bool:
    return bool(run.info.lifecycle_stage == "active" and run.info.status == "RUNNING")


def _merge_runs(tracking: Tracking) -> Iterator[Run]:
    from mlflow.entities import ViewType

    client, wanted = tracking.client, with_tags(role="merge")
    for experiments in pages(client.search_experiments, view_type=ViewType.ALL):
        ids = [experiment.experiment_id for experiment in experiments]
        for runs in pages(client.search_runs, ids, wanted, ViewType.ALL):
            yield from runs


def _versions(tracking: Tracking) -> Iterator[ModelVersion]:
    for versions in pages(tracking.client.search_model_versions):
        yield from versions
