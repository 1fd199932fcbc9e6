"""What the numbers say of a merge: better than the models it is made of, worse, or not shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.scores import Comparison, Scores, compare

BETTER, NOT_SHOWN, WORSE = "better", "not shown", "worse"
BASE, BEST_PARENT = "base", "best parent"
LEVEL = 0.025
"""Of the one-sided test that belongs to a 95 % interval."""


@dataclass(frozen=True)
class Against:
    """A merge beside one of the models it is made of."""

    reference: str
    kind: str
    """``best parent`` or ``base``."""
    difference: Comparison

    @property
    def outcome(self) -> str:
        """``better`` or ``worse`` where the 95 % interval leaves out zero, else ``not shown``."""
        if self.difference.low > 0:
            return BETTER
        return WORSE if self.difference.high < 0 else NOT_SHOWN

    def __str__(self) -> str:
        name = self.kind if self.reference == self.kind else f"{self.kind} {self.reference}"
        words = {NOT_SHOWN: "not shown to be better than"}
        verb = words.get(self.outcome, f"{self.outcome} than")
        return f"{verb} the {name}: {self.difference}"


@dataclass(frozen=True)
class Standing:
    """A merge beside its best parent and, where there is one, its base."""

    against: tuple[Against, ...]

    @property
    def outcome(self) -> str:
        """The worst of all: a merge is ``better`` where it is better than each of them."""
        outcomes = {each.outcome for each in self.against}
        return next(word for word in (WORSE, NOT_SHOWN, BETTER) if word in outcomes)

    @property
    def is_ahead(self) -> bool:
        """Whether no score is below that of a reference, be it by chance."""
        return all(each.difference.difference >= 0 for each in self.against)

    @property
    def parent(self) -> Against:
        """Beside the best parent."""
        return self.against[0]

    @property
    def detectable(self) -> float | None:
        """The smallest difference to the best parent that as many items show with 80 % power."""
        return self.parent.difference.detectable(LEVEL)

    @property
    def advice(self) -> str:
        """What to try next, where it is not better."""
        if self.outcome == BETTER:
            return ""
        if not self.is_ahead:
            return (
                "try another method (method=NAME), fewer sources (only=[A,B]) or smaller weights; "
                "`mergeops inspect` shows where the sources conflict, `mergeops search` keeps only "
                "what helps"
            )
        least = self.detectable
        shown = f"as many items show differences from about {least:.3f}: " if least else ""
        return f"{shown}score more items or tasks, or try another method or other sources"

    def __str__(self) -> str:
        return "; ".join(map(str, self.against))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "outcome": self.outcome,
            "against": [
                {
                    "reference": each.reference,
                    "kind": each.kind,
                    "difference": each.difference.difference,
                    "low": _finite(each.difference.low),
                    "high": _finite(each.difference.high),
                    "outcome": each.outcome,
                }
                for each in self.against
            ],
        }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def standing_of(merge: Scores, parents: Mapping[str, Scores]) -> Standing | None:
    """How a merge stands among its parents.

    Args:
        parents: of the base, called ``base``, and of every source, on the same items.

    Returns:
        None where there is no source to compare with.

    Raises:
        EvaluationError: the tasks' metrics do not point the same way.
    """
    sources = {name: scores for name, scores in parents.items() if name != BASE}
    if not sources:
        return None
    best = max(sources, key=lambda name: sources[name].merit)
    against = [Against(best, BEST_PARENT, compare(merge, sources[best]))]
    if BASE in parents:
        against.append(Against(BASE, BASE, compare(merge, parents[BASE])))
    return Standing(tuple(against))
