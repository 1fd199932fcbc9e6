"""The gate: does the evidence of the confirm part hold that a merge is better? Pure, no registry.

Against each reference two things must be shown. On the primary tasks, their items pooled, the
candidate is better: an exact one-sided paired test at level alpha. On every single task it is not
worse by more than a margin: the one-sided lower confidence bound of the paired difference lies
above -margin. All must hold at once (an intersection-union test: Berger 1982,
https://doi.org/10.1080/00401706.1982.10487790), so no level is divided among them.

Three answers: promote; refuse, when something speaks against the candidate; inconclusive, when
nothing does but the items are too few to show what has to be shown. Only the first promotes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import Scores
from mergeops.evaluate.paired import Comparison, compare
from mergeops.settings import PromoteSpec

PROMOTE, REFUSE, INCONCLUSIVE = "promote", "refuse", "inconclusive"
PASS, FAIL, THIN = "pass", "fail", "inconclusive"


@dataclass(frozen=True)
class Check:
    """One thing that must be shown against one reference."""

    reference: str
    """E.g. ``best_parent:math`` or ``champion:3``."""
    kind: str
    """``better`` or ``not worse``."""
    tasks: tuple[str, ...]
    n: int
    """Items."""
    difference: float
    """Candidate minus reference, in score units; positive means the candidate is better."""
    low: float
    """Of a ``not worse`` check the one-sided bound that is held against -margin; else, with
    ``high``, the interval that belongs to the one-sided test: 1 - 2 alpha, two-sided."""
    high: float
    p_value: float | None
    """Of a ``better`` check."""
    threshold: float
    """alpha, or -margin."""
    wins: int
    """Items on which only, or more, the candidate is right."""
    losses: int
    detectable: float | None
    """The smallest true difference these items would show with 80 % power; None if unknown."""
    outcome: str
    """pass, fail or inconclusive."""
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The gate's answer with its numbers."""

    decision: str
    """promote, refuse or inconclusive."""
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    """Why not, one sentence each; empty for promote."""

    @property
    def promotes(self) -> bool:
        """Whether every check holds."""
        return self.decision == PROMOTE

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; a number that is not finite becomes None."""
        return {
            "decision": self.decision,
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
                f"[{check.low:+.3f}, {check.high:+.3f}]",
                f"p {_p(check.p_value)} (alpha {check.threshold:g})"
                if check.p_value is not None
                else f"low > {check.threshold:+.3f}",
                check.outcome,
            )
            for check in self.checks
        ]


COLUMNS = ("reference", "must be", "tasks", "items", "difference", "interval", "rule", "outcome")
"""Headings of ``Verdict.rows``."""


def judge(candidate: Scores, references: Mapping[str, Scores], spec: PromoteSpec) -> Verdict:
    """Hold a candidate against its references on the confirm part.

    Args:
        candidate: one candidate, chosen without the confirm part.
        references: by name; one that does not exist (no champion yet) is left out.

    Raises:
        EvaluationError: scores of the dev part, a primary task without scores, or items that are
            not the same for both.
    """
    for name, scores in {"the candidate": candidate, **references}.items():
        if scores.part != "confirm":
            raise EvaluationError(
                f"the gate takes scores of the confirm part; those of {name} are of the "
                f"{scores.part} part, which the choice has seen"
            )
    for task in spec.primary:
        if task not in candidate.tasks:
            raise EvaluationError(
                f"promote.primary names task {task!r}, which has no scores; "
                f"scored: {', '.join(candidate.tasks)}"
            )
    primary = spec.primary or tuple(candidate.tasks)
    checks: list[Check] = []
    for name, reference in references.items():
        is_same = reference.weights_sha256 == candidate.weights_sha256
        checks.append(_better(name, candidate, reference, primary, spec, is_same))
        checks += [_not_worse(name, candidate, reference, t, spec) for t in candidate.tasks]
    return _verdict(tuple(checks), spec)


def _verdict(checks: tuple[Check, ...], spec: PromoteSpec) -> Verdict:
    if not checks:
        wanted = ", ".join(spec.against) or "nothing"
        reason = (
            f"there is nothing to compare with: promote.against asks for {wanted}, and none of it "
            "exists; add best_parent or base"
        )
        return Verdict(INCONCLUSIVE, (), (reason,))
    outcomes = {check.outcome for check in checks}
    decision = REFUSE if FAIL in outcomes else INCONCLUSIVE if THIN in outcomes else PROMOTE
    # A refusal is explained by what speaks against the candidate, before what is merely unproved.
    reasons = [c.sentence for c in checks if c.outcome == FAIL]
    reasons += [c.sentence for c in checks if c.outcome == THIN]
    return Verdict(decision, checks, tuple(reasons))


def _better(
    name: str,
    candidate: Scores,
    reference: Scores,
    tasks: tuple[str, ...],
    spec: PromoteSpec,
    is_same: bool,
) -> Check:
    found = compare(candidate, reference, tasks, confidence=1 - 2 * spec.alpha)
    detectable = found.detectable(spec.alpha)
    numbers = f"{found.difference:+.3f} on {found.n} items, {_counts(found)}, p {_p(found.p_value)}"
    if is_same:
        outcome, sentence = FAIL, f"the candidate is {name}: the same weights"
    elif found.p_value <= spec.alpha:
        outcome, sentence = PASS, f"better than {name}: {numbers} <= alpha {spec.alpha:g}"
    elif found.difference >= 0:
        outcome = THIN
        sentence = f"not shown to be better than {name}: {numbers} > alpha {spec.alpha:g}"
        if detectable is not None:
            sentence += f"; these items show differences from about {detectable:.3f}"
    else:
        outcome, sentence = FAIL, f"worse than {name}: {numbers}"
    return Check(
        name,
        "better",
        tasks,
        found.n,
        found.difference,
        found.low,
        found.high,
        p_value=found.p_value,
        threshold=spec.alpha,
        wins=found.wins,
        losses=found.losses,
        detectable=detectable,
        outcome=outcome,
        sentence=sentence,
    )


def _not_worse(
    name: str, candidate: Scores, reference: Scores, task: str, spec: PromoteSpec
) -> Check:
    found = compare(candidate, reference, (task,), confidence=2 * spec.confidence - 1)
    alpha = 1 - spec.confidence
    margin = f"{spec.margin:g}"
    numbers = (
        f"{found.difference:+.3f} on {found.n} items, {_counts(found)}, at worst {found.low:+.3f}"
    )
    if found.low > -spec.margin:
        outcome = PASS
        sentence = f"not worse than {name} on {task} by more than {margin}: {numbers}"
    elif found.difference >= -spec.margin:
        outcome = THIN
        sentence = f"a loss of over {margin} against {name} on {task} is not ruled out: {numbers}"
    else:
        outcome = FAIL
        sentence = f"loses more than {margin} against {name} on {task}: {numbers}"
    return Check(
        name,
        "not worse",
        (task,),
        found.n,
        found.difference,
        found.low,
        found.high,
        p_value=None,
        threshold=-spec.margin,
        wins=found.wins,
        losses=found.losses,
        detectable=found.detectable(alpha),
        outcome=outcome,
        sentence=sentence,
    )


def _counts(found: Comparison) -> str:
    return f"{found.wins} won and {found.losses} lost"


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _named(tasks: tuple[str, ...]) -> str:
    return ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"
