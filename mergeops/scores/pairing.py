"""Which scores may be compared at all: the same items, asked and counted in the same way."""

from __future__ import annotations

from collections.abc import Iterable

from mergeops.errors import EvaluationError
from mergeops.scores.scores import Scores
from mergeops.scores.task_score import CORPUS, TaskScore

Pairs = tuple[tuple[float, float], ...]
"""(candidate, reference) for each item, larger is better."""
_NAMES = {"doc_id": "item", "doc_hash": "item", "prompt_hash": "prompt", "target_hash": "target"}


def pair(
    candidate: Scores, reference: Scores, tasks: Iterable[str] | None = None
) -> dict[str, Pairs]:
    """The values of both models on every item, by task.

    Args:
        tasks: which; None takes all of the candidate's.

    Raises:
        EvaluationError: a task is missing, or any item, prompt or target is not the same.
    """
    if candidate.part != reference.part:
        raise EvaluationError(
            f"scores of the {candidate.part} part cannot be compared with scores of the "
            f"{reference.part} part"
        )
    _check_version(candidate, reference)
    paired = {}
    for task in candidate.tasks if tasks is None else tasks:
        for scores, who in ((candidate, "the candidate"), (reference, "the reference")):
            if task not in scores.tasks:
                raise EvaluationError(
                    f"task {task!r} is not among the scores of {who}: {', '.join(scores.tasks)}"
                )
        paired[task] = _pair_task(candidate.tasks[task], reference.tasks[task])
    return paired


def _pair_task(candidate: TaskScore, reference: TaskScore) -> Pairs:
    task = candidate.task
    if candidate.metric != reference.metric:
        raise EvaluationError(
            f"task {task}: metric {candidate.metric} cannot be compared with {reference.metric}"
        )
    _check_alike(candidate, reference)
    if candidate.n != reference.n:
        raise EvaluationError(
            f"task {task}: {candidate.n} items cannot be paired with {reference.n}; score both "
            "with the same evaluate.limit, confirm_fraction and split_salt"
        )
    sign = 1.0 if candidate.higher_is_better else -1.0
    both = list(zip(candidate.items, reference.items, strict=True))
    for attribute, name in _NAMES.items():
        other_ids = [a.doc_id for a, b in both if getattr(a, attribute) != getattr(b, attribute)]
        if other_ids:
            raise EvaluationError(
                f"task {task}, item {other_ids[0]}: the {name} is not the same for both models, as "
                f"on {len(other_ids)} of {len(both)} items; score both with the same task files "
                "and settings"
            )
    if CORPUS in (candidate.kind, reference.kind) and (
        len(candidate.replicates) != len(reference.replicates)
        or any(a.cluster != b.cluster for a, b in both)
    ):
        raise EvaluationError(
            f"task {task}: the items were not drawn alike for both models; score both with the "
            "same evaluate.clusters"
        )
    pairs = [(sign * mine.value, sign * other.value) for mine, other in both]
    if sign < 0 and all(v in (0.0, -1.0) for p in pairs for v in p):
        return tuple((1.0 + a, 1.0 + b) for a, b in pairs)  # an error rate: count what is right
    return tuple(pairs)


def _check_version(candidate: Scores, reference: Scores) -> None:
    """Prompts, filters and metrics change with lm-eval, whatever the tasks' own versions say."""
    mine, other = (scores.settings.get("lm_eval") for scores in (candidate, reference))
    if mine and other and mine != other:
        raise EvaluationError(
            f"the candidate was scored by lm-eval {mine} and the reference by lm-eval {other}: "
            "their prompts and metrics may differ; run the command that scored the older one "
            "again with the lm-eval that is installed"
        )


def _check_alike(candidate: TaskScore, reference: TaskScore) -> None:
    mine = {**candidate.asked, "task version": candidate.version, "kind of score": candidate.kind}
    other = {**reference.asked, "task version": reference.version, "kind of score": reference.kind}
    unlike = [key for key in mine if key in other and mine[key] != other[key]]
    if unlike:
        what = "; ".join(f"{key}: {mine[key]} and {other[key]}" for key in unlike)
        raise EvaluationError(
            f"task {candidate.task}: the candidate and the reference were not scored alike "
            f"({what}); run the command that scored the older one again, with the same task files "
            "and settings"
        )
