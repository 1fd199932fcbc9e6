"""The single things that a gate asks for: better, not worse, no rise in bits per byte, a floor.

Each is one statement with its numbers and one of three outcomes: pass, fail, or too few items to
tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergeops.errors import EvaluationError
from mergeops.evaluate import Scores
from mergeops.evaluate.intervals import mean_interval
from mergeops.evaluate.paired import Comparison, compare
from mergeops.settings import PromoteSpec

PASS, FAIL, THIN = "pass", "fail", "inconclusive"
BETTER, NOT_WORSE, RISE, FLOOR = "better", "not worse", "bits per byte", "floor"
BITS_PER_BYTE = "bits_per_byte"


@dataclass(frozen=True)
class Check:
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
    p_value: float | None
    """Of a ``better`` check."""
    threshold: float
    """The level, -margin, the largest rise, or the floor."""
    rule: str
    """What has to hold, e.g. ``low > -0.050``."""
    test: str
    """Where p or interval come from, e.g. ``exact McNemar``."""
    wins: int
    """Items on which only, or more, the candidate is right."""
    losses: int
    detectable: float | None
    """The smallest true difference these items would show with 80 % power; None if unknown."""
    outcome: str
    """pass, fail or inconclusive."""
    sentence: str


def better(
    name: str, candidate: Scores, reference: Scores, tasks: tuple[str, ...], level: float
) -> Check:
    """The candidate is better on all items of the tasks pooled: a one-sided test at ``level``."""
    found = compare(candidate, reference, tasks, confidence=1 - 2 * level)
    detectable = found.detectable(level)
    numbers = f"{_difference(found)} on {found.n} items, {_counts(found)}, p {found.p_value:.3g}"
    if reference.weights_sha256 == candidate.weights_sha256:
        outcome, sentence = FAIL, f"the candidate is {name}: the same weights"
    elif found.p_value <= level:
        outcome, sentence = PASS, f"better than {name}: {numbers} <= alpha {level:.3g}"
    elif found.difference >= 0:
        outcome = THIN
        sentence = f"not shown to be better than {name}: {numbers} > alpha {level:.3g}"
        if detectable is not None:
            sentence += f"; these items show differences from about {detectable:.3f}"
    else:
        outcome, sentence = FAIL, f"worse than {name}: {numbers}"
    rule = f"p <= {level:.3g}"
    return _check(name, BETTER, tasks, found, level, rule, detectable, outcome, sentence)


def not_worse(
    name: str, candidate: Scores, reference: Scores, task: str, spec: PromoteSpec
) -> Check:
    """On one task no loss over the margin: the lower bound of the difference lies above it."""
    margin = spec.margins.get(task, spec.margin)
    found = compare(candidate, reference, (task,), confidence=2 * spec.confidence - 1)
    numbers = (
        f"{_difference(found)} on {found.n} items, {_counts(found)}, at worst {found.low:+.3f}"
    )
    if found.low > -margin:
        outcome = PASS
        sentence = f"not worse than {name} on {task} by more than {margin:g}: {numbers}"
    elif found.difference >= -margin:
        outcome = THIN
        sentence = f"a loss of over {margin:g} against {name} on {task} is not ruled out: {numbers}"
    else:
        outcome = FAIL
        sentence = f"loses more than {margin:g} against {name} on {task}: {numbers}"
    detectable = found.detectable(1 - spec.confidence)
    rule = f"low > {-margin:+.3f}"
    return _check(name, NOT_WORSE, (task,), found, -margin, rule, detectable, outcome, sentence)


def no_rise(name: str, candidate: Scores, reference: Scores, task: str, spec: PromoteSpec) -> Check:
    """Bits per byte, averaged over documents, do not rise by more than allowed.

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
    found = compare(candidate, reference, (task,), confidence=2 * spec.confidence - 1)
    rise, low, high = -found.difference, -found.high, -found.low
    numbers = f"{rise:+.4f} [{low:+.4f}, {high:+.4f}] on {found.n} documents"
    what = f"bits per byte over {name} on {task}"
    if high <= allowed:
        outcome, sentence = PASS, f"{what} rise by no more than {allowed:g}: {numbers}"
    elif rise <= allowed:
        outcome, sentence = THIN, f"{what}: a rise of over {allowed:g} is not ruled out: {numbers}"
    else:
        outcome, sentence = FAIL, f"{what} rise by more than {allowed:g}: {numbers}"
    return Check(
        name,
        RISE,
        (task,),
        found.n,
        rise,
        low,
        high,
        p_value=None,
        threshold=allowed,
        rule=f"high <= {allowed:+.3f}",
        test=found.test,
        wins=found.wins,
        losses=found.losses,
        detectable=found.detectable(1 - spec.confidence),
        outcome=outcome,
        sentence=sentence,
    )


def floor(candidate: Scores, task: str, spec: PromoteSpec) -> Check:
    """The candidate's score reaches a floor with confidence, whatever the references do."""
    wanted, score = spec.floors[task], candidate.tasks[task]
    found = mean_interval(candidate, (task,), confidence=2 * spec.confidence - 1)
    up = score.higher_is_better
    bound, rule = (found.low, "low >=") if up else (found.high, "high <=")
    numbers = f"{found} on {found.n} items"
    limit = f"{'floor' if up else 'limit'} {wanted:g}"
    if bound >= wanted if up else bound <= wanted:
        outcome, sentence = PASS, f"{task} keeps its {limit}: {numbers}"
    elif found.mean >= wanted if up else found.mean <= wanted:
        outcome, sentence = THIN, f"{task} is not shown to keep its {limit}: {numbers}"
    else:
        outcome, sentence = FAIL, f"{task} misses its {limit}: {numbers}"
    return Check(
        "-",
        FLOOR,
        (task,),
        found.n,
        found.mean,
        found.low,
        found.high,
        p_value=None,
        threshold=wanted,
        rule=f"{rule} {wanted:.3f}",
        test=found.method,
        wins=0,
        losses=0,
        detectable=None,
        outcome=outcome,
        sentence=sentence,
    )


def _check(
    name: str,
    kind: str,
    tasks: tuple[str, ...],
    found: Comparison,
    threshold: float,
    rule: str,
    detectable: float | None,
    outcome: str,
    sentence: str,
) -> Check:
    return Check(
        name,
        kind,
        tasks,
        found.n,
        found.difference,
        found.low,
        found.high,
        p_value=found.p_value if kind == BETTER else None,
        threshold=threshold,
        rule=rule,
        test=found.test,
        wins=found.wins,
        losses=found.losses,
        detectable=detectable,
        outcome=outcome,
        sentence=sentence,
    )


def _difference(found: Comparison) -> str:
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _counts(found: Comparison) -> str:
    return f"{found.wins} won and {found.losses} lost"
