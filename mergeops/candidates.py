"""The registered merges, and which of them is held against the gate: the best on the dev part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.evaluate import merit
from mergeops.tracking.client import or_none
from mergeops.tracking.keys import quoted
from mergeops.tracking.registry import find_registered_model
from mergeops.tracking.scores import with_tags

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking


@dataclass(frozen=True)
class Candidate:
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


def rank(found: Iterable[Candidate]) -> list[Candidate]:
    """The choice rule: the best pooled dev score first, the older version where two are equal.

    Scores on other questions cannot be compared: merges that answered the questions of the newest
    one come first, those without scores last.
    """
    found = list(found)
    scored = [candidate for candidate in found if candidate.is_scored]
    newest = max(scored, key=lambda c: c.version).questions if scored else ""
    return sorted(
        found, key=lambda c: (not c.is_scored, c.questions != newest, -c.merit, c.version)
    )


def candidates(tracking: Tracking, name: str) -> list[Candidate]:
    """The registered merges of ``name``, ranked.

    Raises:
        TrackingError: there is no such registered model.
    """
    client = tracking.client
    find_registered_model(tracking, name)
    wanted = f"name = {quoted(name)} and {with_tags(role='merge')}"
    found = []
    for version in client.search_model_versions(wanted):
        run_id = version.tags.get("mergeops.run_id") or str(version.run_id)
        found_run = or_none(partial(client.get_run, run_id))
        if found_run is None or found_run.info.lifecycle_stage == "deleted":
            # Nothing can be logged onto it any more.
            continue
        run = found_run.data
        found.append(
            Candidate(
                version=int(version.version),
                run_id=run_id,
                model_id=run.tags.get("mergeops.model_id"),
                plan_digest=version.tags.get("mergeops.plan_digest", ""),
                weights_sha256=version.tags.get("mergeops.weights_sha256", ""),
                status=version.tags.get("mergeops.status", ""),
                dev_score=float(run.metrics.get("pooled", math.nan)),
                higher_is_better=run.tags.get("mergeops.higher_is_better.dev") != "false",
                questions=run.tags.get("mergeops.questions.dev", ""),
            )
        )
    return rank(found)


def choose(tracking: Tracking, name: str, version: int | None) -> Candidate:
    """The candidate to judge: ``version``, or the best on the dev part.

    Raises:
        TrackingError: it is no merge, or no merge has a dev score.
    """
    found = candidates(tracking, name)
    if version is not None:
        for candidate in found:
            if candidate.version == version:
                return candidate
        known = ", ".join(str(c.version) for c in sorted(found, key=lambda c: c.version))
        raise TrackingError(
            f"version {version} of {name} is no merge of this experiment's trials; merges: "
            f"{known or 'none'}"
        )
    if not found or not found[0].is_scored:
        raise TrackingError(
            f"{name} has no merge with a dev score to choose by; run one with evaluate.tasks=[...]"
        )
    return found[0]
