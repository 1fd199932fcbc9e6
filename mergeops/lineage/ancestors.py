"""The ancestors of a model, as its trials and those of its parents name them.

A trial keeps its parents in ``lock.json``; where that artifact is gone, its tags still name them.
What was deleted stays in the tree, and says so: a tree with holes is worth more than an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint import read_manifest
from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.lineage.family import Member
from mergeops.lineage.family_records import FamilyRecords
from mergeops.redact import redact
from mergeops.store import Tracking, own_tags
from mergeops.tracking import pooled_estimate

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion


_RUN = re.compile(r"^(?:runs:/)?([0-9a-f]{32})(?:/.*)?$")
_VERSION = re.compile(r"^models:/([^/@:]+)(?:/(\d+)|@([\w-]+))(?:/.*)?$")
_MODEL = re.compile(r"^(?:models:/)?(m-[0-9a-f]{32})(?:/.*)?$")

DEEPEST = 30
"""Generations that are followed; more would be a loop in what MLflow was told."""


def find_family(tracking: Tracking, uri: str) -> Member:
    """The family tree of what ``uri`` names.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID, m-ID, runs:/ID or a run's id.

    Raises:
        ConfigError: it is written in another way.
        TrackingError: MLflow knows no such thing, or cannot be reached.
    """
    records = FamilyRecords(tracking)
    ancestors = Ancestors(records)
    if named := _VERSION.match(uri):
        return ancestors.of_version(records.version(*named.groups()))
    if named := _MODEL.match(uri):
        member = ancestors.of_model(named[1])
        if member is None:
            raise TrackingError(f"there is no LoggedModel {named[1]} at {tracking.shown_place}")
        return member
    if named := _RUN.match(uri):
        run = records.run(named[1])
        if run is None:
            raise TrackingError(f"there is no run {named[1]} at {tracking.shown_place}")
        if run.data.tags.get("mergeops.role") == "search":
            raise TrackingError(f"run {named[1]} is a search, not a model; name one of its trials")
        return ancestors.of_run(run)
    raise ConfigError(
        f"{uri!r} names no model; write models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or "
        "runs:/ID"
    )


class Ancestors:
    """Family trees; the parents of a merge are followed where it comes first."""

    def __init__(self, records: FamilyRecords) -> None:
        self._records = records
        self._followed: set[str] = set()

    def of_version(self, version: ModelVersion) -> Member:
        """Of a registered version: its run tells more than its source, where there is one."""
        run_id = own_tags(version.tags).get("mergeops.run_id") or version.run_id
        model = _MODEL.match(str(version.source))
        member = self.of_model(model[1]) if model else None
        if member is None and (run := self._records.run(run_id)):
            member = self.of_run(run)
        shown = self._records.shown(version)
        if member is not None:
            if shown in member.versions:
                return member
            return dataclasses.replace(member, versions=(shown, *member.versions))
        note = "registered without a run; not made by mergeops"
        if model or run_id:
            note = f"its {'LoggedModel' if model else 'run'} is gone from MLflow"
        return Member(
            "model",
            shown.split(" ")[0],
            str(redact(version.source)),
            run_id=run_id or None,
            run_status="gone" if run_id else "",
            versions=(shown,),
            notes=(note,),
        )

    def of_model(self, model_id: str) -> Member | None:
        """Of a LoggedModel; None where MLflow has none of that id."""
        model = self._records.model(model_id)
        if model is None:
            return None
        run = self._records.run(model.source_run_id)
        role = model.tags.get("mergeops.role", "")
        trained_from = _trained_from(run, model)
        if run is not None and (role or run.data.tags.get("mergeops.role") == "merge"):
            member = self.of_run(run)
            parents = member.parents or trained_from
            return dataclasses.replace(member, model_id=model_id, parents=parents)
        notes = []
        if not role:
            notes.append("not made by mergeops")
        if model.source_run_id and run is None:
            notes.append(f"its run {model.source_run_id} is gone from MLflow")
        if str(model.status) != "READY":
            notes.append(f"its upload is {model.status}")
        return Member(
            role if role in ("base", "source", "merge") else "model",
            str(model.name),
            str(redact(model.tags.get("mergeops.source_uri") or model.params.get("uri") or "")),
            run_id=model.source_run_id or None,
            run_status=_status(run) if model.source_run_id else "",
            experiment_id=str(model.experiment_id),
            model_id=model_id,
            versions=self._records.versions_with("source_path", f"models:/{model_id}"),
            sha256=model.tags.get("mergeops.weights_sha256", ""),
            notes=tuple(notes),
            parents=trained_from,
        )

    def of_run(self, run: Run, below: tuple[str, ...] = ()) -> Member:
        """Of a run: a trial with its parents, or a training run with its base.

        Args:
            below: the runs of its descendants, on the way from the root of the tree to it.
        """
        tags, run_id = own_tags(run.data.tags), str(run.info.run_id)
        role = tags.get("mergeops.role", "")
        if role in ("base", "source") and not below:
            # This run holds a parent's scores; another one trained it.
            training_run = self._records.run(tags.get("mergeops.source_run_id"))
            if training_run is not None:
                return self.of_run(training_run)
        notes = []
        if run.info.lifecycle_stage == "deleted":
            notes.append("its run is deleted in MLflow")
        parents: tuple[Member, ...] = ()
        if role != "merge":
            parents = _trained_from(run, None)
        elif len(below) >= DEEPEST:
            notes.append(f"its parents are not followed: {DEEPEST} generations are enough")
        elif run_id in below:
            notes.append("it is its own ancestor in MLflow; not followed again")
        elif run_id in self._followed:
            notes.append("its parents are above")
        else:
            self._followed.add(run_id)
            pinned = self._records.lock(run)
            if pinned is None:
                notes.append("its lock.json is missing; parents as its tags name them")
                pinned = _parents_in_tags(tags)
            parents = tuple(
                self._parent(run, name, facts, (*below, run_id)) for name, facts in pinned.items()
            )
        return Member(
            role if role in ("merge", "base") else "source",
            str(run.info.run_name or run_id),
            run_id=run_id,
            run_status=_status(run),
            experiment_id=str(run.info.experiment_id),
            model_id=tags.get("mergeops.model_id"),
            versions=self._records.versions_with("run_id", run_id),
            sha256=tags.get("mergeops.weights_sha256", ""),
            method=tags.get("mergeops.method", ""),
            score=pooled_estimate(run.data.metrics),
            notes=tuple(notes),
            parents=parents,
        )

    def _parent(
        self, child: Run, name: str, facts: Mapping[str, Any], below: tuple[str, ...]
    ) -> Member:
        """A parent by what its child's lock says of it, and by what is known of its own making."""
        kind = "base" if name == "base" else "source"
        tracked = self._records.model(str(facts.get("tracked_model_id") or ""))
        run_id = facts.get("run_id") or (tracked.source_run_id if tracked else None)
        sha256 = str(facts.get("sha256") or "")
        as_pinned = Member(
            kind,
            name,
            str(redact(facts.get("uri") or "")),
            run_id=run_id,
            model_id=str(tracked.model_id) if tracked else None,
            sha256=sha256,
            weight=_weight(child, name),
            score=self._records.score(child, sha256, kind),
        )
        run = self._records.run(run_id)
        if run is None and run_id:
            note = "its run is gone from MLflow"
            return dataclasses.replace(as_pinned, run_status="gone", notes=(note,))
        made = self.of_run(run, below) if run else self._local_merge(facts, below)
        if made is None:
            notes = () if tracked else ("its LoggedModel is gone from MLflow",)
            return dataclasses.replace(as_pinned, notes=notes)
        is_merge = made.kind == "merge"
        return dataclasses.replace(
            made,
            kind="merge" if is_merge else kind,
            name=name,
            uri=as_pinned.uri or made.uri,
            sha256=as_pinned.sha256 or made.sha256,
            weight=as_pinned.weight,
            score=made.score if is_merge else as_pinned.score,
        )

    def _local_merge(self, facts: Mapping[str, Any], below: tuple[str, ...]) -> Member | None:
        """A merge that has no run of its own, by the manifest in its directory."""
        try:
            manifest = read_manifest(Path(facts["path"])) if facts.get("path") else None
        except SourceError:
            return None
        if manifest is None:
            return None
        run = self._records.trial(str(manifest["plan_digest"]))
        if run is not None and run.info.run_id not in below:
            return self.of_run(run, below)
        inputs = {"base": [manifest.get("base")], "source": manifest.get("sources", [])}
        parents = [
            self._described(kind, facts)
            for kind, described in inputs.items()
            for facts in described
            if isinstance(facts, Mapping)
        ]
        method = manifest.get("method")
        return Member(
            "merge",
            "merge",
            method=str(method.get("name", "")) if isinstance(method, Mapping) else "",
            notes=("merged outside MLflow; its manifest names its parents",),
            parents=tuple(parents),
        )

    def _described(self, kind: str, facts: Mapping[str, Any]) -> Member:
        """An input as a manifest describes it."""
        run_id = facts.get("run_id")
        return Member(
            kind,
            str(facts.get("name")),
            str(redact(facts.get("uri", ""))),
            run_id=run_id,
            run_status=_status(self._records.run(run_id)) if run_id else "",
            sha256=str(facts.get("sha256", "")),
        )


def _parents_in_tags(tags: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Name of each parent -> what the lock would say, as far as a trial's tags tell."""
    names = [name for name in tags.get("mergeops.parents", "").split(",") if name]
    ids = tags.get("mergeops.parent_model_ids", "").split(",")
    return {name: {"tracked_model_id": id_} for name, id_ in zip(names, ids, strict=False)}


def _trained_from(run: Run | None, model: LoggedModel | None) -> tuple[Member, ...]:
    """The base of a training run, as its trainer or ``adopt`` wrote it down."""
    base = model.tags.get("mergeops.base") if model else None
    if base is None and run is not None:
        base = run.data.tags.get("mergeops.base_model") or run.data.params.get("_name_or_path")
    if not base or base == "None":
        return ()
    shown = str(redact(base))
    return (Member("base", shown.rstrip("/").rpartition("/")[2] or shown, shown),)


def _status(run: Run | None) -> str:
    """MLflow's status of a run, or what became of it."""
    if run is None:
        return "gone"
    return "deleted" if run.info.lifecycle_stage == "deleted" else str(run.info.status)


def _weight(child: Run, name: str) -> str:
    params = child.data.params
    default = "" if name == "base" else params.get("method.weight", "")
    return str(params.get(f"sources.{name}.weight", default))
