"""Which of a task's metrics chooses between models, and which way it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.metric_kinds import aggregation_of, unusable


def choose_metric(
    name: str, chosen: str | None, task: Any, docs: Sequence[Any], aggregated: Sequence[Any] = ()
) -> tuple[str, str]:
    """The metric and the filter that a task is scored by.

    Args:
        name: of the task.
        chosen: ``evaluate.metrics`` for this task: ``acc``, or ``exact_match,strict-match`` to
            choose one of several filters as well.
        task: lm-eval's.
        docs: its items.
        aggregated: what the group that names the task aggregates, as lm-eval has it; its metrics
            and filters are taken before the task's own order where none is chosen.

    Raises:
        EvaluationError: the task has no such metric or filter, or lm-eval has no number of it.
    """
    metrics, filters = _metrics(task, docs), [ensemble.name for ensemble in task._filters]
    metric, _, chosen_filter = (chosen or "").partition(",")
    if chosen is None:
        fitting = [each.metric for each in aggregated if each.metric in metrics] or metrics
        metric = "acc" if "acc" in fitting else fitting[0]
    if metric not in metrics:
        raise EvaluationError(
            f"evaluate.metrics.{name} is {chosen!r}; task {name} has: {', '.join(metrics)}"
        )
    if chosen_filter and chosen_filter not in filters:
        raise EvaluationError(
            f"evaluate.metrics.{name} is {chosen!r}; the filters of task {name} are: "
            f"{', '.join(filters)}"
        )
    if reason := _unusable(task, metric):
        others = [other for other in metrics if not _unusable(task, other)]
        raise EvaluationError(
            f"metric {metric} of task {name} cannot be chosen: {reason}; set "
            f"evaluate.metrics.{name} to one of: {', '.join(others) or 'none'}"
        )
    of_group = [f for each in aggregated if each.metric == metric for f in each.filter_list or []]
    return metric, chosen_filter or next((f for f in of_group if f in filters), filters[0])


def other_than_usual(
    name: str, metric: str, chosen_filter: str, task: Any, docs: Sequence[Any]
) -> str:
    """A metric and filter where they are others than the task is scored by without a choice."""
    try:
        usual = choose_metric(name, None, task, docs)
    except EvaluationError:  # there is no number without a choice
        usual = None
    return "" if (metric, chosen_filter) == usual else f"{metric},{chosen_filter}"


def direction(name: str, metric: str, task: Any, stated: Mapping[str, bool]) -> bool:
    """Whether more of a metric is better: as ``evaluate.higher_is_better`` says, else lm-eval.

    Raises:
        EvaluationError: neither does, or the task's file says the opposite of lm-eval.
    """
    said = stated.get(name, task.higher_is_better().get(metric))
    if not isinstance(said, bool):
        raise EvaluationError(
            f"task {name}: neither its file nor lm-eval says whether more of metric {metric} is "
            f"better; set evaluate.higher_is_better.{name}=true, or =false"
        )
    if name not in stated and said != _known_direction(task, metric, said):
        better, other = ("more", "less") if said else ("less", "more")
        raise EvaluationError(
            f"task {name}: its file says that {better} of metric {metric} is better, and to "
            f"lm-eval, whose metric it is, {other} is; set evaluate.higher_is_better.{name}=true, "
            "or =false"
        )
    return said


def _known_direction(task: Any, metric: str, otherwise: bool) -> bool:
    """The direction of a number that lm-eval counts itself, whatever the task's file calls it."""
    from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY, METRIC_AGGREGATION_REGISTRY

    is_own = task.get_config("process_results") is None and (
        METRIC_AGGREGATION_REGISTRY.get(metric, None) is aggregation_of(task, metric)
    )
    return bool(HIGHER_IS_BETTER_REGISTRY.get(metric, otherwise)) if is_own else otherwise


def _unusable(task: Any, metric: str) -> str:
    own_results = task.get_config("process_results") is not None
    return unusable(metric, aggregation_of(task, metric), own_results=own_results)


def _metrics(task: Any, docs: Sequence[Any]) -> list[str]:
    """What the task gives of an item; a function in its metric_list may give several.

    Those are known when it is called: with an empty answer to the first item.
    """
    declared = list(task.aggregation())
    listed = task.get_config("metric_list") or []
    functions = [e["metric"] for e in listed if callable(e.get("metric")) or e.get("hf_evaluate")]
    if not functions or task.get_config("process_results") is not None or not docs:
        return declared
    try:
        given = list(task.process_results(docs[0], [""]))
    except Exception:  # the user's code, which need not take an empty answer
        return declared
    return given or declared
