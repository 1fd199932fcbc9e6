"""What a family tree reads of MLflow, each thing once: ancestors are shared by many."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mergeops.errors import AwayError, TrackingError
from mergeops.scores import Estimate
from mergeops.store import Tracking, is_missing, or_none, pages, quoted, run_filters
from mergeops.tracking import find_registered_model, find_version, pooled_estimate

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

T = TypeVar("T")


class FamilyRecords:
    """Runs, models, versions and scores of one server, remembered."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._client = tracking.client
        self._remembered: dict[tuple[str, ...], Any] = {}

    def _once(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        if key not in self._remembered:
            self._remembered[key] = read()
        value: T = self._remembered[key]
        return value

    def run(self, run_id: str | None) -> Run | None:
        """The run, also a deleted one; None where MLflow has none of that id."""
        if not run_id:
            return None
        return self._once(("run", run_id), lambda: or_none(lambda: self._client.get_run(run_id)))

    def model(self, model_id: str) -> LoggedModel | None:
        """The LoggedModel; None where MLflow has none of that id."""
        if not model_id:
            return None
        client = self._client
        key = ("model", model_id)
        return self._once(key, lambda: or_none(lambda: client.get_logged_model(model_id)))

    def version(self, name: str, number: str | None, alias: str) -> ModelVersion:
        """A registered model's version by its number, else by its alias.

        Raises:
            TrackingError: there is none.
        """
        if number is not None:
            return find_version(self._tracking, name, int(number))
        try:
            return self._client.get_model_version_by_alias(name, alias)
        except TrackingError as error:
            if not is_missing(error):
                raise
            known = ", ".join(sorted(find_registered_model(self._tracking, name).aliases)) or "none"
            raise TrackingError(f"{name} has no alias {alias!r}; its aliases: {known}") from error

    def lock(self, run: Run) -> dict[str, Mapping[str, Any]] | None:
        """The parents in a trial's lock; None where it is gone or damaged."""
        with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
            try:
                path = self._client.download_artifacts(run.info.run_id, "lock.json", folder)
                parents = json.loads(Path(path).read_text(encoding="utf-8"))["parents"]
                return {str(name): dict(facts) for name, facts in parents.items()}
            except AwayError:
                raise
            except (TrackingError, OSError, ValueError, KeyError, TypeError, AttributeError):
                return None

    def score(self, child: Run, sha256: str, role: str) -> Estimate | None:
        """A base's or source's own score, in the experiment of its child."""
        experiment_id = str(child.info.experiment_id)

        def read() -> Estimate | None:
            for wanted in run_filters(role, weights_sha256=sha256):
                for run in self._client.search_runs([experiment_id], wanted, max_results=1):
                    return pooled_estimate(run.data.metrics)
            return None

        return self._once(("score", experiment_id, sha256, role), read) if sha256 else None

    def trial(self, plan_digest: str) -> Run | None:
        """A run of the plan in any experiment."""

        def read() -> Run | None:
            for experiments in pages(self._client.search_experiments):
                ids = [experiment.experiment_id for experiment in experiments]
                for wanted in run_filters("merge", plan_digest=plan_digest):
                    for run in self._client.search_runs(ids, wanted, max_results=1):
                        return run
            return None

        return self._once(("trial", plan_digest), read)

    def versions_with(self, key: str, value: str) -> tuple[str, ...]:
        """The versions whose ``run_id`` or ``source_path`` is ``value``, as they are shown."""

        def read() -> tuple[str, ...]:
            versions = self._client.search_model_versions(f"{key} = {quoted(value)}")
            ordered = sorted(versions, key=lambda v: (v.name, int(v.version)))
            return tuple(self.shown(version) for version in ordered)

        return self._once(("versions", key, value), read)

    def shown(self, version: ModelVersion) -> str:
        """NAME/VERSION and its aliases."""
        name, number = version.name, str(version.version)
        client = self._client
        aliases = self._once(("aliases", name), lambda: client.get_registered_model(name).aliases)
        own = [f"@{alias}" for alias in sorted(aliases) if str(aliases[alias]) == number]
        return " ".join([f"{name}/{number}", *own])
