"""Which of a run's checkpoints is the best, by the run's own metric and direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.sources.fingerprint import is_finite
from mergeops.sources.logged_config import is_set
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

LOSSES = ("eval_loss", "val_loss", "validation_loss")
"""What trainers call the loss on held-out data, where a run does not say what it goes by."""


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


def run_metrics(run: Run) -> list[RunMetric]:
    """The metric that the trainer was told to go by; without one, the losses, lower is better."""
    params = run.data.params
    name = params.get("metric_for_best_model")
    if not name or not is_set(name):
        return [RunMetric(loss, False) for loss in LOSSES]
    # As transformers does: a name without eval_ gets it, and what ends with loss is to be low.
    name = name if name.startswith("eval_") else f"eval_{name}"
    told = params.get("greater_is_better")
    greater = told == "True" if told in ("True", "False") else not name.endswith("loss")
    return [RunMetric(name, greater)]


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
