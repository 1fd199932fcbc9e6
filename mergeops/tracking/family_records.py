"""What a family tree reads of MLflow, each thing once: ancestors are shared by many."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import AwayError, TrackingError
from mergeops.evaluate.intervals import Estimate
from mergeops.tracking.client import is_missing, or_none, pages
from mergeops.tracking.keys import quoted
from mergeops.tracking.registry import find_registered_model, find_version
from mergeops.tracking.scores import pooled_estimate, with_tags

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

    from mergeops.tracking.connection import Tracking


class FamilyRecords:
    """Runs, models, versions and scores of one server, remembered."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._runs: dict[str, Run | None] = {}
        self._models: dict[str, LoggedModel | None] = {}
        self._scores: dict[tuple[str, str, str], Estimate | None] = {}
        self._trials: dict[str, Run | None] = {}
        self._versions: dict[tuple[str, str], tuple[str, ...]] = {}
        self._aliases: dict[str, Mapping[str, str]] = {}

    def run(self, run_id: str) -> Run | None:
        """The run, also a deleted one; None where MLflow has none of that id."""
        if run_id not in self._runs:
            self._runs[run_id] = or_none(lambda: self._tracking.client.get_run(run_id))
        return self._runs[run_id]

    def version(self, name: str, number: str | None, alias: str) -> ModelVersion:
        if number is not None:
            return find_version(self._tracking, name, int(number))
        try:
            return self._tracking.client.get_model_version_by_alias(name, alias)
        except TrackingError as error:
            if not is_missing(error):
                raise
            known = ", ".join(sorted(find_registered_model(self._tracking, name).aliases)) or "none"
            raise TrackingError(f"{name} has no alias {alias!r}; its aliases: {known}") from error

    def lock(self, run: Run) -> dict[str, Mapping[str, Any]] | None:
        """The parents in a trial's lock; None where it is gone or damaged."""
        with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
            try:
                path = self._tracking.client.download_artifacts(
                    run.info.run_id, "lock.json", folder
                )
                found = json.loads(Path(path).read_text(encoding="utf-8"))["parents"]
                return {str(name): dict(facts) for name, facts in found.items()}
            except AwayError:
                raise
            except (TrackingError, OSError, ValueError, KeyError, TypeError, AttributeError):
                return None

    def score(self, child: Run, sha256: str, role: str) -> Estimate | None:
        """A base's or source's own score, in the experiment of its child."""
        if not sha256:
            return None
        wanted = with_tags(weights_sha256=sha256, role=role)
        experiment_id = str(child.info.experiment_id)
        key = (experiment_id, sha256, role)
        if key not in self._scores:
            found = self._tracking.client.search_runs([experiment_id], wanted, max_results=1)
            self._scores[key] = pooled_estimate(found[0].data.metrics) if found else None
        return self._scores[key]

    def trial(self, plan_digest: str) -> Run | None:
        """A run of the plan in any experiment."""
        if plan_digest not in self._trials:
            wanted = with_tags(plan_digest=plan_digest, role="merge")
            self._trials[plan_digest] = self._first(wanted)
        return self._trials[plan_digest]

    def _first(self, wanted: str) -> Run | None:
        client = self._tracking.client
        for experiments in pages(client.search_experiments):
            ids = [experiment.experiment_id for experiment in experiments]
            for run in client.search_runs(ids, wanted, max_results=1):
                return run
        return None

    def model(self, model_id: str) -> LoggedModel | None:
        """The LoggedModel; None where MLflow has none of that id."""
        if not model_id:
            return None
        if model_id not in self._models:
            client = self._tracking.client
            self._models[model_id] = or_none(lambda: client.get_logged_model(model_id))
        return self._models[model_id]

    def versions_with(self, key: str, value: str) -> tuple[str, ...]:
        """The versions whose ``run_id`` or ``source_path`` is ``value``, as they are shown."""
        if (key, value) not in self._versions:
            found = self._tracking.client.search_model_versions(f"{key} = {quoted(value)}")
            ordered = sorted(found, key=lambda v: (v.name, int(v.version)))
            self._versions[key, value] = tuple(self.shown(version) for version in ordered)
        return self._versions[key, value]

    def shown(self, version: ModelVersion) -> str:
        """NAME/VERSION and its aliases."""
        if version.name not in self._aliases:
            model = self._tracking.client.get_registered_model(version.name)
            self._aliases[version.name] = model.aliases
        aliases = [
            f"@{alias}"
            for alias, number in sorted(self._aliases[version.name].items())
            if str(number) == str(version.version)
        ]
        return " ".join([f"{version.name}/{version.version}", *aliases])
