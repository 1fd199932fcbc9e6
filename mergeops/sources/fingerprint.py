"""Whose checkpoint it is: what its trainer state holds, against what a run logged.

Both write the same numbers, bit by bit: a loss at a step is a fingerprint of its training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import TrackingError
from mergeops.sources.contents import Location
from mergeops.sources.remote.directory import Directory, read_json
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import Run

TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Ownership:
    """What the numbers say."""

    is_proven: bool = False
    """Whether a loss at some step is the same in both, and none differs."""
    problem: str | None = None
    """Why it is another run's, with both numbers."""
    is_continued: bool = False
    """Whether that run went on from this one's checkpoint, up to which the numbers are the same."""


def ownership(store: TrainingRuns, run: Run, state: Mapping[str, Any]) -> Ownership:
    """Hold a checkpoint's trainer state against the losses that a run logged.

    It is the run's where both have a loss at the same step, and equal ones. It is another's where
    losses at one step differ, where the run logged none of the state's steps, or where the state
    goes on after the run's last step, as that of a run does which resumed from this one.
    """
    is_proven = False
    for key, saved in _losses(state).items():
        last = run.data.metrics.get(key)
        if last is None:
            continue
        if _is_same(saved[max(saved)], last):
            # The run's last loss is the state's last: no question to the server is needed.
            is_proven = True
            continue
        logged = _history(store, run, key)
        if not logged:
            continue
        shared = sorted(saved.keys() & logged.keys())
        for step in shared:
            if not any(_may_be(saved[step], value) for value in logged[step]):
                return Ownership(
                    problem=f"its {TRAINER_STATE} has {key} {saved[step]:.6g} at step {step}, this "
                    f"run logged {logged[step][-1]:.6g}"
                )
        beyond = sorted(step for step in saved if step > max(logged))
        # One more: the log of a killed run's last step may not have been sent.
        if len(beyond) > 1:
            return Ownership(
                problem=f"its {TRAINER_STATE} has {key} up to step {beyond[-1]}, this run logged "
                f"it up to step {max(logged)}",
                is_continued=bool(shared),
            )
        if not shared and len(saved) > len(beyond):
            steps, ours = sorted(saved), sorted(logged)
            return Ownership(
                problem=f"its {TRAINER_STATE} has {key} at step {_few(steps)}, this run logged it "
                f"at step {_few(ours)}"
            )
        is_proven = is_proven or any(
            _is_same(saved[step], value) for step in shared for value in logged[step]
        )
    return Ownership(is_proven=is_proven)


def state_of(save: Directory, location: Location) -> dict[str, Any]:
    """The trainer's state, beside the weights or, of a named adapter, above them."""
    for directory in (location.directory, save):
        state = read_json(directory, TRAINER_STATE)
        if state is not None:
            return state
    return {}


def logged_values(state: Mapping[str, Any], name: str) -> dict[int, float]:
    """Step -> value, as a trainer's state holds them; those that are no numbers left out."""
    values = _values(state).get(name, {})
    return {step: value for step, value in values.items() if is_finite(value)}


def is_finite(value: Any) -> bool:
    """Whether a logged value is a number."""
    # A store keeps infinity as the largest double; NaN is below nothing.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e308


def _losses(state: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    return {
        name: values
        for name, values in _values(state).items()
        if name == "loss" or name.endswith("_loss")
    }


def _values(state: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Name -> step -> value; what is no such thing is passed over."""
    history = state.get("log_history")
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("step"), int):
            continue
        for name, value in entry.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # A number of hundreds of digits is none that was logged.
            if is_number and (isinstance(value, float) or abs(value) < 1e308):
                values[str(name)][entry["step"]] = float(value)
    return values


def _history(store: TrainingRuns, run: Run, key: str) -> dict[int, list[float]]:
    """Step -> all values: a run may hold several trainings."""
    try:
        history = store.client.get_metric_history(run.info.run_id, key)
    except TrackingError:
        return {}
    values: dict[int, list[float]] = defaultdict(list)
    for metric in history:
        values[int(metric.step)].append(float(metric.value))
    return values


def _is_same(ours: float, theirs: float) -> bool:
    """Whether two numbers are a fingerprint: finite, and equal but for the last bits."""
    return is_finite(ours) and is_finite(theirs) and math.isclose(ours, theirs, rel_tol=1e-9)


def _may_be(ours: float, theirs: float) -> bool:
    # What is not finite is written in several ways, and says little.
    return _is_same(ours, theirs) or not (is_finite(ours) or is_finite(theirs))


def _few(steps: list[int], n: int = 3) -> str:
    more = ", ..." if len(steps) > n else ""
    return ", ".join(str(step) for step in steps[:n]) + more
