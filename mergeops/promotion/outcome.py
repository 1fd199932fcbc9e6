"""What became of a promotion, and everything that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import GateRefusedError
from mergeops.promotion.audit import PROPOSED, Change
from mergeops.promotion.expectation import Expectation
from mergeops.promotion.gate import Verdict
from mergeops.promotion.uses import Use


@dataclass(frozen=True)
class Outcome:
    """What became of a promotion."""

    name: str
    version: int
    verdict: Verdict | None
    """None where the version was @champion already, so that nothing was judged."""
    use: Use | None
    """Of the confirm part, where it was opened."""
    expectations: tuple[Expectation, ...]
    """What was said before it was opened."""
    change: Change | None
    """The audit's entry; None where the gate refused, or somebody set @champion by hand."""
    refusal: GateRefusedError | None
    links: Mapping[str, str] = field(default_factory=dict)
    """Pages in MLflow: ``version`` and ``run``; empty where none serves any."""

    @property
    def promoted(self) -> bool:
        """Whether the version is @champion now, and not merely proposed."""
        return self.verdict is None or (self.change is not None and self.change.kind != PROPOSED)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "version": self.version,
            "promoted": self.promoted,
            "proposed": self.change is not None and not self.promoted,
            "change": self.change.to_dict() if self.change else None,
            "verdict": evidence(self.verdict, self.use, self.expectations)
            if self.verdict and self.use
            else None,
            "links": dict(self.links),
        }

    def raise_if_refused(self) -> None:
        """Raise the gate's refusal, where there is one."""
        if self.refusal is not None:
            raise self.refusal


def evidence(verdict: Verdict, use: Use, expectations: tuple[Expectation, ...]) -> dict[str, Any]:
    """Everything that a promotion rests on, as JSON types: what ``gate.json`` holds."""
    return {
        **verdict.to_dict(),
        "confirm_use": use.to_dict(),
        "beforehand": [expectation.to_dict() for expectation in expectations],
    }
