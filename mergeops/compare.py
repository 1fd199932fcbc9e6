"""The leaderboard of an experiment: everything scored there, parents and merges together."""

from __future__ import annotations

from collections import Counter

from mergeops.errors import TrackingError
from mergeops.report.leaderboard import Entry, Leaderboard, leaderboard
from mergeops.settings import TrackingSpec


def experiment_leaderboard(
    spec: TrackingSpec, part: str = "dev", reference: str | None = None
) -> Leaderboard:
    """Rank every model of the experiment that was scored on the part.

    Only models that answered the same questions as the newest one can be compared; others, of an
    older task version or another split, are left out.

    Args:
        spec: names the server and the experiment.
        part: dev or confirm.
        reference: name to take differences from; None takes the best parent.

    Raises:
        TrackingError: no such experiment, or nothing was scored there yet.
        EvaluationError: no model is called ``reference``.
    """
    from mergeops.tracking.connection import connect

    found = connect(spec, create=False).scored(part)
    if not found:
        raise TrackingError(
            f"experiment {spec.experiment!r} has no scores on the {part} part yet; "
            + (
                "run a merge with evaluate.tasks=[...]"
                if part == "dev"
                else "promote a merge first"
            )
        )
    asked = {name: task.digest for name, task in found[-1].scores.tasks.items()}
    same = [
        model
        for model in found
        if {name: task.digest for name, task in model.scores.tasks.items()} == asked
    ]
    repeated = Counter(model.name for model in same)
    return leaderboard(
        [
            Entry(
                model.name if repeated[model.name] == 1 else f"{model.name} ({model.run_id[:6]})",
                model.role,
                model.scores,
            )
            for model in same
        ],
        reference,
    )
