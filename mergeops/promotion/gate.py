"""The gate: does the evidence of the confirm part hold that a merge is better? Pure, no registry.

Against each reference several things must be shown. On the primary tasks, their items pooled, the
candidate is better: an exact one-sided paired test at the level of this use of the confirm part. On
every single task it is not worse by more than a margin, and its bits per byte do not rise by more
than allowed: one-sided confidence bounds of paired differences. And it keeps its floors. All must
hold at once (an intersection-union test: Berger 1982,
https://doi.org/10.1080/00401706.1982.10487790), so no level is divided among them.

Three answers: promote; refuse, when something speaks against the candidate; inconclusive, when
nothing does but the items are too few to show what has to be shown. Only the first promotes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.promotion.gate_checks import (
    BETTER,
    FAIL,
    THIN,
    GateCheck,
    better,
    floor,
    no_rise,
    not_worse,
)
from mergeops.promotion.tables import markdown_table, signed_interval
from mergeops.recipe import PromoteSpec
from mergeops.scores import Scores

PROMOTE, REFUSE, INCONCLUSIVE = "promote", "refuse", "inconclusive"
COLUMNS = ("reference", "must be", "tasks", "items", "difference", "interval", "rule", "outcome")
"""Headings of ``Verdict.rows``."""


@dataclass(frozen=True)
class Verdict:
    """The gate's answer with its numbers."""

    decision: str
    """promote, refuse or inconclusive."""
    checks: tuple[GateCheck, ...]
    reasons: tuple[str, ...]
    """Why not, one sentence each; empty for promote."""
    level: float
    """Of the ``better`` checks."""

    @property
    def promotes(self) -> bool:
        """Whether every check holds."""
        return self.decision == PROMOTE

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; a number that is not finite becomes None."""
        return {
            "decision": self.decision,
            "level": self.level,
            "reasons": list(self.reasons),
            "checks": [
                {
                    key: None if isinstance(value, float) and not math.isfinite(value) else value
                    for key, value in asdict(check).items()
                }
                | {"tasks": list(check.tasks)}
                for check in self.checks
            ],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """For a table, after ``COLUMNS``."""
        return [
            (
                check.reference,
                check.kind,
                _named(check.tasks),
                str(check.n),
                f"{check.difference:+.3f}",
                signed_interval(check.low, check.high),
                check.shown_rule,
                check.outcome,
            )
            for check in self.checks
        ]

    def markdown(self) -> str:
        """As a Markdown table, with the reasons below."""
        reasons = "".join(f"\n- {reason}" for reason in self.reasons)
        return f"**{self.decision}**\n\n{markdown_table(COLUMNS, self.rows())}\n{reasons}\n"


def check_tasks(spec: PromoteSpec, tasks: Iterable[str]) -> None:
    """Refuse a gate that names tasks which are not scored; asked before anything is opened.

    Args:
        tasks: those of ``evaluate.tasks``.

    Raises:
        EvaluationError: names the key, the task and what is scored.
    """
    scored = tuple(tasks)
    for key in ("primary", "retain", "margins", "floors"):
        for task in getattr(spec, key):
            if task not in scored:
                raise EvaluationError(
                    f"promote.{key} names task {task!r}, which has no scores; "
                    f"scored: {', '.join(scored)}"
                )


def nothing_to_compare(spec: PromoteSpec) -> str:
    """Why no evidence can hold where none of the references exists."""
    wanted = ", ".join(spec.against) or "nothing"
    return (
        f"there is nothing to compare with: promote.against asks for {wanted}, and none of it "
        "exists; add best_parent or base"
    )


def judge(
    candidate: Scores,
    references: Mapping[str, Scores],
    spec: PromoteSpec,
    *,
    level: float | None = None,
) -> Verdict:
    """Hold a candidate against its references on the confirm part.

    Args:
        candidate: one candidate, chosen without the confirm part; its tasks are those of
            ``evaluate.tasks`` and of ``spec.bits_per_byte``.
        references: by name; one that does not exist (no champion yet) is left out.
        level: of this use of the confirm part (``uses.level_of``); None takes spec.alpha whole.

    Raises:
        EvaluationError: scores of the dev part, a named task without scores, or items that are not
            the same for both.
    """
    for name, scores in {"the candidate": candidate, **references}.items():
        if scores.part != "confirm":
            raise EvaluationError(
                f"the gate takes scores of the confirm part; those of {name} are of the "
                f"{scores.part} part, which the choice has seen"
            )
    level = spec.alpha if level is None else level
    scored = tuple(task for task in candidate.tasks if task not in spec.bits_per_byte)
    check_tasks(spec, scored)
    checks: list[GateCheck] = []
    for name, reference in references.items():
        checks.append(better(name, candidate, reference, spec.primary or scored, level))
        checks += [not_worse(name, candidate, reference, t, spec) for t in spec.retain or scored]
        checks += [no_rise(name, candidate, reference, t, spec) for t in spec.bits_per_byte]
    checks += [floor(candidate, task, spec) for task in spec.floors]
    return _verdict(tuple(checks), spec, level)


def _verdict(checks: tuple[GateCheck, ...], spec: PromoteSpec, level: float) -> Verdict:
    # A refusal is explained by what speaks against the candidate, before what is merely unproved.
    against = [c.sentence for c in checks if c.outcome == FAIL]
    unproved = [c.sentence for c in checks if c.outcome == THIN]
    if not any(check.kind == BETTER for check in checks):
        unproved.append(nothing_to_compare(spec))
    decision = PROMOTE
    if against:
        decision = REFUSE
    elif unproved:
        decision = INCONCLUSIVE
    return Verdict(decision, checks, (*against, *unproved), level)


def _named(tasks: tuple[str, ...]) -> str:
    return ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"
