"""What a watch knows: which runs it has seen, its best merge, and what it proposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.schema import build

WAITING = "waiting"
"""Usable, and not tried yet."""
KEPT, NOT_BETTER, UNUSABLE, DUPLICATE, MISFIT = (
    "kept",
    "not better",
    "unusable",
    "duplicate",
    "does not fit",
)
MOST_ROUNDS = 200


@dataclass(frozen=True)
class SeenRun:
    """A training run, and what became of it here."""

    run_id: str
    name: str
    experiment: str
    status: str
    outcome: str
    """waiting, kept, not better, unusable, duplicate or does not fit."""
    note: str = ""
    """Why, or what it contributed."""
    uri: str = ""
    base: str | None = None
    sha256: str = ""
    """Of its weights, once they were read."""
    gain: float | None = None
    """What adding it to the merge did to the dev score."""
    at: str = ""
    round: int = 0


@dataclass(frozen=True)
class Best:
    """The merge that the next candidates are added to."""

    sources: Mapping[str, str]
    """Name -> URI."""
    base: str | None
    champion: int | None
    """The champion that it was found against."""
    registered: str = ""
    """NAME/VERSION; empty for a single run."""
    plan_digest: str = ""
    dev: float | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Method, parameters of the sources, and all else of the recipe that decides the weights; empty
    where the sources are equally weighted by the watch's method."""
    is_searched: bool = False
    """Whether there is no search around it to be made any more."""


@dataclass(frozen=True)
class Proposed:
    """A use of the confirm part, and what came of it."""

    plan_digest: str
    registered: str
    at: str
    outcome: str
    """proposed, promoted, refuse, inconclusive, or why nothing was opened."""
    level: float | None = None
    opened: bool = True
    """Whether the confirm part was opened."""
    expected: tuple[str, ...] = ()
    """What was said beforehand that it can show."""


@dataclass(frozen=True)
class RoundRecord:
    """One look at the experiments, and what followed."""

    number: int
    at: str
    new: int
    usable: int
    trials: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class WatchState:
    """All that a watch knows."""

    cursors: Mapping[str, int] = field(default_factory=dict)
    """Experiment -> the latest end of a run that was seen, in milliseconds."""
    runs: Mapping[str, SeenRun] = field(default_factory=dict)
    best: Best | None = None
    held: str = ""
    """Plan digest of a best merge that dev does not speak for: nothing is to be done about it until
    another run comes."""
    proposed: tuple[Proposed, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self) | {
            "proposed": [
                dataclasses.asdict(one) | {"expected": list(one.expected)} for one in self.proposed
            ],
            "rounds": [dataclasses.asdict(one) for one in self.rounds],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> WatchState:
        """What ``to_dict`` gave."""
        state: WatchState = build(cls, raw, "watch.")
        return state

    def waiting(self) -> list[SeenRun]:
        """Candidates, the oldest first."""
        found = [run for run in self.runs.values() if run.outcome == WAITING]
        return sorted(found, key=lambda run: (run.at, run.run_id))

    def with_run(self, run: SeenRun) -> WatchState:
        """The state with one run's line written or replaced."""
        return dataclasses.replace(self, runs={**self.runs, run.run_id: run})

    def with_round(self, record: RoundRecord) -> WatchState:
        """The state with one round more."""
        return dataclasses.replace(self, rounds=(*self.rounds, record)[-MOST_ROUNDS:])
