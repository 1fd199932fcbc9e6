"""A transplant of what two URIs name."""

from __future__ import annotations

from pathlib import Path

from mergeops.derived.tool_trial import Derived, ToolLog, ToolTrial
from mergeops.progress import Progress
from mergeops.recipe import TRANSPLANT, ToolSpec
from mergeops.transplant import Transplant, make_transplant


def transplant_by_uri(
    model: str,
    donor: str,
    out: Path,
    *,
    method: str,
    k: int,
    device: str,
    progress: Progress,
    log: ToolLog | None = None,
) -> Derived[Transplant]:
    """Find model and donor as a recipe's sources would be found, and make the transplant.

    Args:
        model: a directory or a URI.
        donor: another one.
        out: as ``make_transplant``, and so are the others.
        method: see ``make_transplant``.
        k: see ``make_transplant``.
        device: see ``make_transplant``.
        progress: where steps are shown.
        log: whether and how it becomes a trial; None makes none.

    Raises:
        ConfigError, SourceError, MergeError: as ``make_transplant``.
        TrackingError: MLflow is needed and cannot be reached.
    """
    inputs = {"sources": {"model": model, "donor": donor}}
    spec = ToolSpec(TRANSPLANT, {"method": method, "k": k})
    trial = ToolTrial(spec, inputs, log or ToolLog(), progress)
    resolved = trial.resolve()
    made = make_transplant(
        resolved.sources["model"],
        resolved.sources["donor"],
        out,
        method=method,
        k=k,
        cache_dir=trial.cache_dir,
        device=device,
        progress=progress,
    )
    return trial.ended(made, out, measures=made.measures(), plan=made.plan.to_dict())
