"""A trial of the sampler and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.scores import estimate
from mergeops.search.bench import Candidate
from mergeops.search.racing import DROPPED, FAILED, Race
from mergeops.search.space import label_of


@dataclass(kw_only=True)
class Proposal:
    """What one trial of the sampler came to."""

    number: int
    """From 1."""
    values: Mapping[str, Any]
    trial: Any
    """Optuna's."""
    candidate: Candidate | None = None
    """None where it could not be merged or scored."""
    reason: str = ""
    """Why it could not."""

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"{self.number} {label_of(self.values)}"

    @property
    def state(self) -> str:
        """whole, dropped, waiting or failed."""
        return self.candidate.verdict.state if self.candidate else FAILED

    def rung(self, race: Race) -> int:
        """The stage that it came to, from 1; 0 where it was asked nothing."""
        if self.candidate is None:
            return 0
        return 1 + list(race.shares).index(max(self.candidate.stages))

    def why(self) -> str:
        """Why it is not whole; empty where it is."""
        if self.candidate is None:
            return self.reason
        verdict = self.candidate.verdict
        return " and ".join(map(str, verdict.looks)) or verdict.reason

    def outcome(self, race: Race) -> str:
        """What it came to, in a few words."""
        if self.candidate is None:
            return f"failed: {self.reason}"
        if self.candidate.is_whole:
            return f"{estimate(self.candidate.scores)} on dev"
        words = "dropped" if self.state == DROPPED else "behind, waits"
        to = " to the leader" if self.candidate.verdict.looks else ""
        return (
            f"{words} after {self.candidate.answers} items (rung {self.rung(race)} of "
            f"{len(race.shares)}), {self.why()}{to}"
        )
