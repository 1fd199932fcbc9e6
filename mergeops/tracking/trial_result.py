"""What a trial came to, and its note on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.evaluate import Agreement
from mergeops.report import Leaderboard, Standing, leaderboard_of, standing_of
from mergeops.scores import Scores, estimate


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scored recipe."""

    name: str
    plan_digest: str
    run_id: str
    """Empty where the trial is kept for ``mergeops sync``."""
    checkpoint: Path
    registered: str
    """NAME/VERSION in the model registry; empty where the trial is kept for ``mergeops sync``, or
    has no scores and ``tracking.register`` does not ask for a version all the same."""
    scores: Scores | None
    """On the dev part; None where the recipe names no tasks."""
    parents: Mapping[str, Scores]
    """Of the base and every source, on the dev part."""
    leaderboard: Leaderboard | None
    """The merge among its parents."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Pages in MLflow: ``run``, and ``version`` where there is one; empty where none serves any."""
    agreements: Sequence[Agreement] = ()
    """With base and sources, where ``evaluate.agreement`` names a text."""

    @property
    def dev_score(self) -> float:
        """Pooled score on the dev part; NaN where nothing was scored."""
        return self.scores.pooled if self.scores else float("nan")

    @property
    def merit(self) -> float:
        """What choices are made by, larger is better; -inf where there is no finite score."""
        return self.scores.merit if self.scores else -math.inf

    @property
    def standing(self) -> Standing | None:
        """Whether it is better than its best parent and its base; None where nothing was scored."""
        return standing_of(self.scores, self.parents) if self.scores else None

    def note(self) -> dict[str, Any]:
        """All of it as JSON types, for ``from_note``."""
        return {
            "name": self.name,
            "plan_digest": self.plan_digest,
            "run_id": self.run_id,
            "checkpoint": str(self.checkpoint),
            "registered": self.registered,
            "scores": self.scores.to_dict() if self.scores else None,
            "parents": {name: scores.to_dict() for name, scores in self.parents.items()},
            "links": dict(self.links),
            "agreements": [each.to_dict() for each in self.agreements],
        }

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Trial:
        """The trial that ``note`` wrote down."""
        scores = Scores.from_dict(note["scores"]) if note["scores"] else None
        parents = {name: Scores.from_dict(each) for name, each in note["parents"].items()}
        return cls(
            name=note["name"],
            plan_digest=note["plan_digest"],
            run_id=note["run_id"],
            checkpoint=Path(note["checkpoint"]),
            registered=note["registered"],
            scores=scores,
            parents=parents,
            leaderboard=leaderboard_of({note["name"]: scores}, parents) if scores else None,
            links=note["links"],
            agreements=[Agreement(**each) for each in note["agreements"]],
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        standing = self.standing
        interval = estimate(self.scores).interval if self.scores else None
        return {
            "name": self.name,
            "plan_digest": self.plan_digest,
            "run_id": self.run_id,
            "checkpoint": str(self.checkpoint),
            "registered": self.registered,
            "dev_score": self.dev_score if math.isfinite(self.dev_score) else None,
            "dev_interval": list(interval) if interval else None,
            "links": dict(self.links),
            "standing": standing.to_dict() if standing else None,
            "agreements": [each.to_dict() for each in self.agreements],
            "leaderboard": self.leaderboard.to_dict() if self.leaderboard else None,
        }
