"""The ancestors of a model, as its trials and those of its parents name them.

A trial keeps its parents in ``lock.json``; where that artifact is gone, its tags still name them.
What was deleted stays in the tree, and says so: a tree with holes is
worth more than an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError
from mergeops.family import Member
from mergeops.secrets import redact
from mergeops.tracking.family_records import FamilyRecords
from mergeops.tracking.scores import pooled_estimate

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

    from mergeops.tracking.connection import Tracking

DEEPEST = 30
"""Generations that are followed; more would be a loop in what MLflow was told."""
ABOVE = "its parents are above"

MODEL = re.compile(r"^(?:models:/)?(m-[0-9a-f]{32})(?:/.*)?$")


class Ancestors:
    """Family trees; the parents of a merge are followed where it comes first."""

    def __init__(self, tracking: Tracking) -> None:
        self._records = FamilyRecords(tracking)
        self._followed: set[str] = set()

    def run(self, run_id: str) -> Run | None:
        """The run; None where MLflow has none of that id."""
        return self._records.run(run_id)

    def of_named(self, name: str, number: str | None, alias: str) -> Member:
        """Of a registered model's version, by its number, else by its alias.

        Raises:
            TrackingError: there is none.
        """
        return self.of_version(self._records.version(name, number, alias))

    def of_version(self, version: ModelVersion) -> Member:
        """Of a registered version: its run tells more than its source, where there is one."""
        run_id = version.tags.get("mergeops.run_id") or version.run_id
        model = MODEL.match(str(version.source))
        member = self.of_model(model[1]) if model else None
        if member is None and run_id:
            run = self._records.run(run_id)
            member = self.of_run(run, ()) if run else None
        shown = self._records.shown(version)
        if member is None:
            gone = f"its {'LoggedModel' if model else 'run'} is gone from MLflow"
            note = gone if model or run_id else "registered without a run; not made by mergeops"
            return Member(
                "model",
                shown.split(" ")[0],
                str(redact(version.source)),
                run_id=run_id or None,
                run_status="gone" if run_id else "",
                versions=(shown,),
                notes=(note,),
            )
        if shown not in member.versions:
            member = dataclasses.replace(member, versions=(shown, *member.versions))
        return member

    def of_model(self, model_id: str) -> Member | None:
        """Of a LoggedModel; None where MLflow has none of that id."""
        model = self._records.model(model_id)
        if model is None:
            return None
        run = self._records.run(model.source_run_id) if model.source_run_id else None
        role = model.tags.get("mergeops.role", "")
        if run is not None and (role or run.data.tags.get("mergeops.role") == "merge"):
            member = self.of_run(run, ())
            trained = member.parents or self._trained_from(run, model)
            return dataclasses.replace(member, model_id=model_id, parents=trained)
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
            parents=self._trained_from(run, model),
        )

    def of_run(self, run: Run, above: tuple[str, ...]) -> Member:
        """Of a run: a trial with its parents, or a training run with its base."""
        tags, run_id = run.data.tags, str(run.info.run_id)
        role = tags.get("mergeops.role", "")
        if role in ("base", "source") and not above:
            trained = tags.get("mergeops.source_run_id")
            source = self._records.run(trained) if trained else None
            if source is not None:
                return self.of_run(source, above)
        is_merge = role == "merge"
        notes: list[str] = []
        if run.info.lifecycle_stage == "deleted":
            notes.append("its run is deleted in MLflow")
        parents: tuple[Member, ...] = ()
        if is_merge and len(above) >= DEEPEST:
            notes.append(f"its parents are not followed: {DEEPEST} generations are enough")
        elif is_merge and run_id in above:
            notes.append("it is its own ancestor in MLflow; not followed again")
        elif is_merge and run_id in self._followed:
            notes.append(ABOVE)
        elif is_merge:
            self._followed.add(run_id)
            parents = self._parents(run, (*above, run_id), notes)
        else:
            parents = self._trained_from(run, None)
        return Member(
            "merge" if is_merge else role if role == "base" else "source",
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

    def _parents(self, run: Run, above: tuple[str, ...], notes: list[str]) -> tuple[Member, ...]:
        pinned = self._records.lock(run)
        if pinned is None:
            notes.append("its lock.json is missing; parents as its tags name them")
            names = [n for n in run.data.tags.get("mergeops.parents", "").split(",") if n]
            ids = run.data.tags.get("mergeops.parent_model_ids", "").split(",")
            pinned = {
                name: {"tracked_model_id": model_id}
                for name, model_id in zip(names, ids, strict=False)
            }
        return tuple(self._parent(run, name, facts, above) for name, facts in pinned.items())

    def _parent(
        self, child: Run, name: str, facts: Mapping[str, Any], above: tuple[str, ...]
    ) -> Member:
        kind = "base" if name == "base" else "source"
        tracked = self._records.model(str(facts.get("tracked_model_id") or ""))
        run_id = facts.get("run_id") or (tracked.source_run_id if tracked else None)
        sha256 = str(facts.get("sha256") or "")
        own = Member(
            kind,
            name,
            str(redact(facts.get("uri") or "")),
            run_id=run_id,
            model_id=str(tracked.model_id) if tracked else None,
            sha256=sha256,
            weight=_weight(child, name),
            score=self._records.score(child, sha256, kind),
        )
        run = self._records.run(run_id) if run_id else None
        if run is not None:
            found = self.of_run(run, above)
        elif run_id:
            return dataclasses.replace(
                own, run_status="gone", notes=("its run is gone from MLflow",)
            )
        else:
            local = self._local_merge(facts, above)
            if local is None:
                notes = () if tracked else ("its LoggedModel is gone from MLflow",)
                return dataclasses.replace(own, notes=notes)
            found = local
        is_merge = found.kind == "merge"
        return dataclasses.replace(
            found,
            kind="merge" if is_merge else kind,
            name=name,
            uri=own.uri or found.uri,
            sha256=own.sha256 or found.sha256,
            weight=own.weight,
            score=found.score if is_merge else own.score,
        )

    def _local_merge(self, facts: Mapping[str, Any], above: tuple[str, ...]) -> Member | None:
        """A merge that has no run of its own, by the manifest in its directory."""
        from mergeops.checkpoint.manifest import read_manifest

        try:
            manifest = read_manifest(Path(facts["path"])) if facts.get("path") else None
        except SourceError:
            return None
        if manifest is None:
            return None
        digest = str(manifest["plan_digest"])
        run = self._records.trial(digest)
        if run is not None and run.info.run_id not in above:
            return self.of_run(run, above)
        described = [manifest.get("base"), *manifest.get("sources", [])]
        members = [
            Member(
                "base" if i == 0 else "source",
                str(one.get("name")),
                str(redact(one.get("uri", ""))),
                run_id=one.get("run_id"),
                run_status=_status(self._records.run(one["run_id"])) if one.get("run_id") else "",
                sha256=str(one.get("sha256", "")),
            )
            for i, one in enumerate(described)
            if isinstance(one, Mapping)
        ]
        method = manifest.get("method")
        return Member(
            "merge",
            "merge",
            method=str(method.get("name", "")) if isinstance(method, Mapping) else "",
            notes=("merged outside MLflow; its manifest names its parents",),
            parents=tuple(members),
        )

    def _trained_from(self, run: Run | None, model: LoggedModel | None) -> tuple[Member, ...]:
        """The base of a training run, as its trainer or ``adopt`` wrote it down."""
        base = model.tags.get("mergeops.base") if model else None
        if base is None and run is not None:
            base = run.data.tags.get("mergeops.base_model") or run.data.params.get("_name_or_path")
        if not base or base == "None":
            return ()
        shown = str(redact(base))
        return (Member("base", shown.rstrip("/").rpartition("/")[2] or shown, shown),)


def _status(run: Run | None) -> str:
    if run is None:
        return "gone"
    return "deleted" if run.info.lifecycle_stage == "deleted" else str(run.info.status)


def _weight(child: Run, name: str) -> str:
    params = child.data.params
    default = "" if name == "base" else params.get("method.weight", "")
    return str(params.get(f"sources.{name}.weight", default))
