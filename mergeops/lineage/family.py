"""A model and its ancestors, as one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mergeops.scores import Estimate


@dataclass(frozen=True)
class Member:
    """A model of the family, with its parents."""

    kind: str
    """merge; source (a training run or a file); base; or model, made by somebody else."""
    name: str
    uri: str = ""
    """How the recipe of its child names it."""
    run_id: str | None = None
    run_status: str = ""
    """MLflow's status, or ``deleted`` or ``gone``."""
    experiment_id: str | None = None
    model_id: str | None = None
    versions: tuple[str, ...] = ()
    """Registered versions, e.g. ``skills/3 @champion``."""
    sha256: str = ""
    """Of the weights, as pinned when they were merged."""
    method: str = ""
    weight: str = ""
    """Its weight in the child's recipe."""
    score: Estimate | None = None
    """Pooled, on the dev part; without an interval where it was logged by an older version."""
    notes: tuple[str, ...] = ()
    """What is deleted, missing or unknown."""
    parents: tuple[Member, ...] = ()

    def walk(self) -> Iterator[Member]:
        """This one and all its ancestors."""
        yield self
        for parent in self.parents:
            yield from parent.walk()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        raw = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "parents"
        }
        raw |= {"versions": list(self.versions), "notes": list(self.notes)}
        interval = self.score.interval if self.score else None
        raw["score"] = self.score.value if self.score else None
        raw["score_interval"] = list(interval) if interval else None
        return {**raw, "parents": [parent.to_dict() for parent in self.parents]}


def short_weight(weight: str) -> str:
    """A weight as it is shown: 0.50 is 0.5."""
    try:
        return f"{float(weight):g}"
    except ValueError:
        return weight
