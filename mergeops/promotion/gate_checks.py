"""The checks of the gate: better, not worse, no rise in bits per byte, a floor.

Each is one statement with its numbers and one of three outcomes: pass, fail, or too few items to
tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.promotion.tables import signed
from mergeops.recipe import PromoteSpec
from mergeops.scores import BOOTSTRAP, Comparison, Scores, compare, pooled_score

PASS, FAIL, THIN = "pass", "fail", "inconclusive"
BETTER, NOT_WORSE, RISE, FLOOR = "better", "not worse", "bits per byte", "floor"
BITS_PER_BYTE = "bits_per_byte"


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One thing that must be shown, mostly against one reference."""

    reference: str
    """E.g. ``best_parent:math`` or ``champion:3``; ``-`` for a floor."""
    kind: str
    """``better``, ``not worse``, ``bits per byte`` or ``floor``."""
    tasks: tuple[str, ...]
    n: int
    """Items."""
    difference: float
    """Candidate minus reference, in score units; positive means the candidate is better, except for
    ``bits per byte``, where it is the rise. For a ``floor`` the candidate's score."""
    low: float
    high: float
    """The interval that belongs to the one-sided bound: for ``better`` of 1 - 2 level, two-sided;
    else of 2 confidence - 1."""
    p_value: float | None = None
    """Of a ``better`` check."""
    threshold: float
    """The level, -margin, the largest rise, or the floor."""
    rule: str
    """What has to hold, e.g. ``low > -0.050``."""
    test: str
    """Where p or interval come from, e.g. ``exact McNemar``."""
    wins: int = 0
    """Items on which only, or more, the candidate is right."""
    losses: int = 0
    detectable: float | None = None
    """The smallest true difference these items would show with 80 % power; None if unknown."""
    outcome: str
    """pass, fail or inconclusive."""
    sentence: str

    @property
    def shown_rule(self) -> str:
        """The rule, for ``better`` with its numbers."""
        if self.p_value is None:
            return self.rule
        return f"p = {self.p_value:.3g}, allowed {self.threshold:.3g}"


def better(
    name: str, candidate: Scores, reference: Scores, tasks: tuple[str, ...], level: float
) -> GateCheck:
    """The candidate is better on all items of the tasks pooled: a one-sided test at ``level``."""
    paired = compare(candidate, reference, tasks, confidence=1 - 2 * level)
    detectable = paired.detectable(level)
    numbers = f"{_counted(paired)}, p {paired.p_value:.3g}"
    if reference.weights_sha256 == candidate.weights_sha256:
        outcome, sentence = FAIL, f"the candidate is {name}: the same weights"
    elif paired.p_value <= level:
        outcome, sentence = PASS, f"better than {name}: {numbers} <= alpha {level:.3g}"
    elif paired.difference >= 0:
        outcome = THIN
        sentence = f"not shown to be better than {name}: {numbers} > alpha {level:.3g}"
        if detectable is not None:
            sentence += f"; these items show differences from about {detectable:.3f}"
    else:
        outcome, sentence = FAIL, f"worse than {name}: {numbers}"
    return GateCheck(
        **_of(paired),
        reference=name,
        kind=BETTER,
        tasks=tasks,
        p_value=paired.p_value,
        threshold=level,
        rule=f"p <= {level:.3g}",
        detectable=detectable,
        outcome=outcome,
        sentence=sentence,
    )


def not_worse(
    name: str, candidate: Scores, reference: Scores, task: str, spec: PromoteSpec
) -> GateCheck:
    """On one task no loss over the margin: the lower bound of the difference lies above it."""
    margin = spec.margins.get(task, spec.margin)
    # The lower end of a two-sided interval of 2 c - 1 is a one-sided bound of confidence c.
    paired = compare(candidate, reference, (task,), confidence=2 * spec.confidence - 1)
    sentences = {
        PASS: f"not worse than {name} on {task} by more than {margin:g}",
        THIN: f"a loss of over {margin:g} against {name} on {task} is not ruled out",
        FAIL: f"loses more than {margin:g} against {name} on {task}",
    }
    outcome = _outcome(paired.low > -margin, paired.difference >= -margin)
    return GateCheck(
        **_of(paired),
        reference=name,
        kind=NOT_WORSE,
        tasks=(task,),
        threshold=-margin,
        rule=f"low > {-margin:+.3f}",
        detectable=paired.detectable(1 - spec.confidence),
        outcome=outcome,
        sentence=f"{sentences[outcome]}: {_counted(paired)}, at worst {paired.low:+.3f}",
    )


def no_rise(
    name: str, candidate: Scores, reference: Scores, task: str, spec: PromoteSpec
) -> GateCheck:
    """Bits per byte, all bits by all bytes, do not rise by more than allowed.

    Raises:
        EvaluationError: the task is scored by another metric.
    """
    allowed = spec.bits_per_byte[task]
    metric = candidate.tasks[task].metric
    if metric != BITS_PER_BYTE:
        raise EvaluationError(
            f"promote.bits_per_byte names task {task}, whose metric is {metric}; name tasks of "
            "loglikelihood_rolling, or set promote.margins for this one"
        )
    paired = compare(candidate, reference, (task,), confidence=2 * spec.confidence - 1)
    # A positive difference of the comparison is a gain: fewer bits. The rise is its negative.
    rise, low, high = -paired.difference, -paired.high, -paired.low
    sentences = {
        PASS: f" rise by no more than {allowed:g}",
        THIN: f": a rise of over {allowed:g} is not ruled out",
        FAIL: f" rise by more than {allowed:g}",
    }
    outcome = _outcome(high <= allowed, rise <= allowed)
    numbers = f"{rise:+.4f} [{low:+.4f}, {high:+.4f}] on {paired.n} documents"
    return GateCheck(
        **_of(paired) | {"difference": rise, "low": low, "high": high},
        reference=name,
        kind=RISE,
        tasks=(task,),
        threshold=allowed,
        rule=f"high <= {allowed:+.3f}",
        detectable=paired.detectable(1 - spec.confidence),
        outcome=outcome,
        sentence=f"bits per byte over {name} on {task}{sentences[outcome]}: {numbers}",
    )


def floor(candidate: Scores, task: str, spec: PromoteSpec) -> GateCheck:
    """The candidate's score reaches a floor with confidence, whatever the references do."""
    wanted = spec.floors[task]
    score = pooled_score(candidate, (task,), confidence=2 * spec.confidence - 1)
    if candidate.tasks[task].higher_is_better:
        limit, rule = f"floor {wanted:g}", f"low >= {wanted:.3f}"
        outcome = _outcome(score.low >= wanted, score.value >= wanted)
    else:
        limit, rule = f"limit {wanted:g}", f"high <= {wanted:.3f}"
        outcome = _outcome(score.high <= wanted, score.value <= wanted)
    verbs = {PASS: "keeps", THIN: "is not shown to keep", FAIL: "misses"}
    return GateCheck(
        reference="-",
        kind=FLOOR,
        tasks=(task,),
        n=score.n,
        difference=score.value,
        low=score.low,
        high=score.high,
        threshold=wanted,
        rule=rule,
        test=score.method,
        outcome=outcome,
        sentence=f"{task} {verbs[outcome]} its {limit}: {score} on {score.n} items",
    )


def _outcome(is_shown: bool, is_likely: bool) -> str:
    """Pass where the interval's end satisfies the rule, fail where not even the estimate does."""
    if is_shown:
        return PASS
    return THIN if is_likely else FAIL


def _of(paired: Comparison) -> dict[str, Any]:
    """What a check takes over from the comparison that it rests on."""
    taken = ("n", "difference", "low", "high", "test", "wins", "losses")
    return {name: getattr(paired, name) for name in taken}


def _counted(paired: Comparison) -> str:
    numbers = signed(paired.difference, paired.low, paired.high)
    if paired.test == BOOTSTRAP:
        return f"{numbers} on {paired.n} items together"
    return f"{numbers} on {paired.n} items, {paired.wins} won and {paired.losses} lost"
