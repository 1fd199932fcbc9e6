"""Which of a run's checkpoints is the best, by the run's own metric and direction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.sources.fingerprint import is_finite
from mergeops.sources.logged_config import is_set
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

# What trainers call the loss, or the accuracy, on held-out data, where nobody says what a run goes
# by. Without such a beginning a name is taken where the run logged it onto the models themselves.
_NAMED = re.compile(
    r"^(?:(?P<held_out>eval|val|valid|validation|dev|test)[ _./-])?(?P<what>loss|acc|accuracy)$",
    re.IGNORECASE,
)
_PRIMARY = "mlflow.experiment.primaryMetric"


@dataclass(frozen=True)
class RunMetric:
    """What tells a run's best checkpoint."""

    name: str
    is_greater_better: bool

    @property
    def best(self) -> str:
        """In words: "lowest eval_loss"."""
        return f"{'highest' if self.is_greater_better else 'lowest'} {self.name}"

    def rank(self, value: float) -> float:
        """Smaller is better."""
        return -value if self.is_greater_better else value


def run_metrics(
    store: TrainingRuns, run: Run, models: Sequence[LoggedModel | None]
) -> list[RunMetric]:
    """What may tell the best, the first first: the metric that the trainer was told to go by; else
    the primary metric of the experiment; else losses, and then accuracies, by their names.

    Args:
        models: the LoggedModel of each checkpoint among which one is chosen.
    """
    params = run.data.params
    name = params.get("metric_for_best_model")
    if name and is_set(name):
        # As transformers does: a name without eval_ gets it, and what ends with loss is to be low.
        # Other trainers log it as it is.
        names = dict.fromkeys((name if name.startswith("eval_") else f"eval_{name}", name))
        told = params.get("greater_is_better")
        greater = told == "True" if told in ("True", "False") else not name.endswith("loss")
        return [RunMetric(each, greater) for each in names]
    if len(models) > 1:
        tags = store.client.get_experiment(run.info.experiment_id).tags
        told = tags.get(f"{_PRIMARY}.greaterIsBetter", "").lower()
        if f"{_PRIMARY}.name" in tags and told in ("true", "false"):
            return [RunMetric(tags[f"{_PRIMARY}.name"], told == "true")]
    on_models = {metric.key for model in models if model for metric in model.metrics or []}
    # What trainer_state.json has may be missing from the run.
    logged = {"eval_loss", *run.data.metrics, *on_models}
    found = [match for name in logged if (match := _NAMED.match(name))]
    usable = [m for m in found if m["held_out"] or m[0] in on_models]
    return [RunMetric(m[0], m["what"].lower() != "loss") for m in sorted(usable, key=_precedence)]


def _precedence(match: re.Match[str]) -> tuple[bool, int, str]:
    """Losses first, in the order of the names' beginnings, those without one last."""
    beginnings = ("eval", "val", "validation", "valid", "dev", "test", "")
    beginning = (match["held_out"] or "").lower()
    return match["what"].lower() != "loss", beginnings.index(beginning), match[0]


def history_of(store: TrainingRuns, run: Run, metric: RunMetric) -> dict[int, float]:
    """Step -> the metric as the run logged it; what is no number is left out."""
    if metric.name not in run.data.metrics:
        return {}
    try:
        history = store.client.get_metric_history(run.info.run_id, metric.name)
    except TrackingError:
        return {}
    return {int(point.step): float(point.value) for point in history if is_finite(point.value)}


def value_on(model: LoggedModel, metric: RunMetric) -> float | None:
    """The metric as it was logged onto a LoggedModel, at its last step.

    MLflow shows NaN as 0.0 there, so a value of exactly zero says nothing: a diverged model must
    neither have the lowest loss nor, among negative ones, the highest reward.
    """
    values: Mapping[int, float] = {
        int(point.step): float(point.value)
        for point in model.metrics or []
        if point.key == metric.name and is_finite(point.value)
    }
    if not values:
        return None
    return values[max(values)] or None


def step_on(model: LoggedModel, run: Run) -> int | None:
    """The step at which a run logged a model; None where it said none."""
    outputs = run.outputs.model_outputs if run.outputs else []
    steps = [int(o.step) for o in outputs or [] if o.model_id == model.model_id and o.step]
    steps = steps or [int(metric.step) for metric in model.metrics or [] if metric.step]
    return max(steps, default=None)
