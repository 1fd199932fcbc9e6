"""What the confirm part can show, said before it is opened.

The dev part tells how often candidate and reference differ, and so the smallest true difference
that the confirm items find with 80 % power at the level of this use. It also tells what the dev
gain is worth after the choice: an interval that holds for all candidates at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.promotion.tables import signed
from mergeops.scores import Scores, Simultaneous, compare, simultaneous_estimate

POWER = 0.8


@dataclass(frozen=True)
class Expectation:
    """What is known of one reference before the confirm part is opened."""

    reference: str
    n: int
    """Confirm items of the primary tasks."""
    level: float
    detectable: float | None
    """Smallest true difference found with 80 % power; None where the dev part does not tell."""
    dev: Simultaneous | None
    """The candidate's gain on dev; its interval holds for all candidates at once."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    def sentence(self) -> str:
        """For the terminal."""
        if self.dev is None:
            return f"{self.reference}: no dev scores on these items, so its power is not known"
        gain = f"{signed(self.dev.difference, self.dev.low, self.dev.high)} on dev"
        if self.dev.candidates > 1:
            gain += f" (the interval allows for a choice among {self.dev.candidates})"
        if self.detectable is None:
            return f"against {self.reference}: {gain}; without variation, its power is not known"
        return (
            f"against {self.reference}: {gain}; the {self.n} confirm items find a difference of "
            f"{self.detectable:.3f} with {POWER:.0%} power"
        )


def expect(
    chosen: str,
    candidates: Mapping[str, Scores],
    reference: str,
    reference_dev: Scores | None,
    tasks: tuple[str, ...],
    n: int,
    level: float,
) -> Expectation:
    """What the dev part says about a comparison that is to come.

    Args:
        chosen: the candidate's key among ``candidates``.
        candidates: dev scores of every merge that the choice was among.
        reference: label of the reference.
        reference_dev: its dev scores; None where there are none.
        tasks: those that must be better.
        n: their confirm items.
        level: of the test.
    """
    unknown = Expectation(reference, n, level, None, None)
    if reference_dev is None:
        return unknown
    comparisons = {}
    for name, scores in candidates.items():
        # Scores on other items or settings than today's say nothing.
        with suppress(EvaluationError):
            comparisons[name] = compare(scores, reference_dev, tasks)
    if chosen not in comparisons:
        return unknown
    rivals = {name: candidates[name] for name in comparisons}
    together = simultaneous_estimate(rivals, reference_dev, tasks)
    detectable = comparisons[chosen].detectable(level, POWER, n)
    return Expectation(reference, n, level, detectable, together[chosen])
