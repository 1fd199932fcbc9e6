"""The registered merges, and which of them the gate judges: the best on the dev part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from mergeops.errors import TrackingError
from mergeops.scores import merit
from mergeops.store import Tracking, or_none, own_tags, quoted
from mergeops.tracking import find_registered_model


@dataclass(frozen=True)
class RegisteredMerge:
    """A registered merge."""

    version: int
    run_id: str
    model_id: str | None
    plan_digest: str
    weights_sha256: str
    status: str
    dev_score: float
    """Pooled score on the dev part; NaN where the trial was not scored."""
    higher_is_better: bool = True
    questions: str = ""
    """Digest of the questions that the dev score is on."""

    @property
    def merit(self) -> float:
        """What choices are made by, larger is better."""
        return merit(self.dev_score, self.higher_is_better)

    @property
    def is_scored(self) -> bool:
        """Whether there is a dev score."""
        return not math.isnan(self.dev_score)


def rank(merges: Iterable[RegisteredMerge]) -> list[RegisteredMerge]:
    """The choice rule: the best pooled dev score first, the older version where two are equal.

    Scores on other questions cannot be compared: merges that answered the questions of the newest
    one come first, those without scores last.
    """
    merges = list(merges)
    scored = [merge for merge in merges if merge.is_scored]
    newest = max(scored, key=lambda m: m.version).questions if scored else ""
    return sorted(
        merges, key=lambda m: (not m.is_scored, m.questions != newest, -m.merit, m.version)
    )


def candidates(tracking: Tracking, name: str) -> list[RegisteredMerge]:
    """The registered merges of ``name``, ranked.

    Raises:
        TrackingError: there is no such registered model.
    """
    client = tracking.client
    find_registered_model(tracking, name)
    merges = []
    for version in client.search_model_versions(f"name = {quoted(name)}"):
        facts = own_tags(version.tags)
        if facts.get("mergeops.role") != "merge":
            continue
        run_id = facts.get("mergeops.run_id") or str(version.run_id)
        run = or_none(partial(client.get_run, run_id))
        if run is None or run.info.lifecycle_stage == "deleted":
            # Nothing can be logged onto it any more.
            continue
        tags, metrics = own_tags(run.data.tags), run.data.metrics
        merges.append(
            RegisteredMerge(
                version=int(version.version),
                run_id=run_id,
                model_id=tags.get("mergeops.model_id"),
                plan_digest=facts.get("mergeops.plan_digest", ""),
                weights_sha256=facts.get("mergeops.weights_sha256", ""),
                status=facts.get("mergeops.status", ""),
                dev_score=float(metrics.get("pooled", math.nan)),
                higher_is_better=tags.get("mergeops.higher_is_better.dev") != "false",
                questions=tags.get("mergeops.questions.dev", ""),
            )
        )
    return rank(merges)


def choose(tracking: Tracking, name: str, version: int | None) -> RegisteredMerge:
    """The candidate to judge: ``version``, or the best on the dev part.

    Raises:
        TrackingError: it is no merge, or no merge has a dev score.
    """
    ranked = candidates(tracking, name)
    if version is not None:
        by_version = {merge.version: merge for merge in ranked}
        if version in by_version:
            return by_version[version]
        known = ", ".join(map(str, sorted(by_version))) or "none"
        raise TrackingError(
            f"version {version} of {name} is no merge of this experiment's trials; merges: {known}"
        )
    if not ranked or not ranked[0].is_scored:
        raise TrackingError(
            f"{name} has no merge with a dev score to choose by; run one with evaluate.tasks=[...]"
        )
    return ranked[0]
