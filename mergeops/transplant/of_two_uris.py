"""A transplant of what two URIs name."""

from __future__ import annotations

from pathlib import Path

from mergeops.progress import Progress
from mergeops.recipe import compose
from mergeops.sources import resolve_with_bar
from mergeops.transplant.transplant import Transplant, make_transplant


def transplant_by_uri(
    model: str, donor: str, out: Path, *, method: str, k: int, device: str, progress: Progress
) -> Transplant:
    """Find model and donor as a recipe's sources would be found, and make the transplant.

    Args:
        model: a directory or a URI.
        donor: another one.
        out: as ``make_transplant``, and so are the others.
        method: see ``make_transplant``.
        k: see ``make_transplant``.
        device: see ``make_transplant``.
        progress: where steps are shown.

    Raises:
        ConfigError, SourceError, MergeError: as ``make_transplant``.
        TrackingError: MLflow is needed and cannot be reached.
    """
    sources = {"model": model, "donor": donor}
    recipe = compose(content={"method": "linear", "sources": sources})
    cache_dir = Path(recipe.output.dir) / "cache"
    resolved = resolve_with_bar(recipe, progress, cache_dir=cache_dir)
    return make_transplant(
        resolved.sources["model"],
        resolved.sources["donor"],
        out,
        method=method,
        k=k,
        cache_dir=cache_dir,
        device=device,
        progress=progress,
    )
