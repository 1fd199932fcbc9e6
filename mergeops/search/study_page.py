"""What a study leaves on its page in MLflow: curves, pictures and tables."""

from __future__ import annotations

import csv as csv_format
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mergeops.scores import estimate
from mergeops.search.study import Study
from mergeops.search.study_report import table_of
from mergeops.tracking import SearchRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 4
"""Trials that a picture of parameters needs."""


def log_study(study: Study, found: dict[str, Any], log: SearchRun) -> None:
    """Log the report, the table as CSV and JSON, the curve of the best, and pictures.

    Writes study.json, trials.csv, trials.json, with several workers workers.json, the metrics
    study/best, study/best_low and study/best_high by answers asked, and below plots/ importances,
    slice, parallel_coordinate and with several objectives pareto_front.
    """
    log.log_json(found, "study.json")
    rows = table_of(found["trials"], [axis.name for axis in study.space.axes])
    log.log_json(found["trials"], "trials.json")
    log.log_text(csv(rows), "trials.csv")
    log.log_work(study.spans, {})
    log.log_curves(curves(study))
    for name, figure in pictures(study).items():
        log.log_figure(figure, f"plots/{name}.png")


def csv(rows: list[dict[str, Any]]) -> str:
    """A table as text, its head first."""
    text = io.StringIO()
    writer = csv_format.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def curves(study: Study) -> dict[str, list[tuple[int, float]]]:
    """The best so far, with its interval, against the answers that were asked until then."""
    found: dict[str, list[tuple[int, float]]] = {"study/best": []}
    asked, best = 0, None
    for candidate in study.candidates:
        asked += candidate.answers
        better = best is None or candidate.scores.merit > best.scores.merit
        if not candidate.is_whole or not better:
            continue
        best, own = candidate, estimate(candidate.scores)
        found["study/best"].append((asked, own.value))
        if own.interval:
            for name, value in zip(
                ("study/best_low", "study/best_high"), own.interval, strict=True
            ):
                found.setdefault(name, []).append((asked, value))
    return found


def pictures(study: Study) -> dict[str, Figure]:
    """Optuna's own; none that it cannot make of these trials."""
    import optuna
    from optuna.visualization import matplotlib as drawn

    several = len(study.bench.race.objectives) > 1
    done = [t for t in study.optuna.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if len(done) < FEWEST:
        return {}
    plots: dict[str, Callable[..., Any]] = {
        "importances": drawn.plot_param_importances,
        "slice": drawn.plot_slice,
        "parallel_coordinate": drawn.plot_parallel_coordinate,
    }
    first = study.bench.race.objectives[0].name
    target = {"target": lambda t: t.values[0], "target_name": first} if several else {}
    found: dict[str, Figure] = {}
    with warnings.catch_warnings(action="ignore"):
        for name, plot in plots.items():
            try:
                axes = plot(study.optuna, **target)
            # Of trials that are all alike, or that share no parameter, there is no picture.
            except (ValueError, RuntimeError, ZeroDivisionError):
                continue
            found[name] = _figure(axes)
        if several:
            names = [objective.name for objective in study.bench.race.objectives]
            if len(names) <= 3:
                found["pareto_front"] = _figure(
                    drawn.plot_pareto_front(study.optuna, target_names=names)
                )
    return found


def _figure(axes: Any) -> Figure:
    """The figure of one or several axes, wide enough for its names."""
    first = axes.flat[0] if hasattr(axes, "flat") else axes
    figure: Figure = first.figure
    figure.set_size_inches(max(9.0, figure.get_figwidth()), max(5.0, figure.get_figheight()))
    figure.tight_layout()
    return figure
