"""Extraction of what two URIs name."""

from __future__ import annotations

from pathlib import Path

from mergeops.extraction.adapter_draft import Extracted
from mergeops.extraction.extraction import extract
from mergeops.extraction.low_rank import Rank
from mergeops.progress import Progress
from mergeops.recipe import compose
from mergeops.sources import resolve_with_bar


def extract_by_uri(
    base: str, tuned: str, out: Path, *, rank: Rank, others: str, progress: Progress
) -> Extracted:
    """Find base and fine-tune as a recipe's would be found, and extract the adapter.

    Args:
        base: a directory or a URI.
        tuned: another one.
        out: as ``extract``.
        rank: as ``extract``.
        others: as ``extract``.
        progress: where steps are shown.

    Raises:
        ConfigError, SourceError, MergeError: as ``extract``.
        TrackingError: MLflow is needed and cannot be reached.
    """
    recipe = compose(content={"base": base, "method": "linear", "sources": {"tuned": tuned}})
    resolved = resolve_with_bar(recipe, progress, cache_dir=Path(recipe.output.dir) / "cache")
    assert resolved.base is not None, "the recipe has one"
    return extract(
        resolved.base,
        resolved.sources["tuned"],
        out,
        rank=rank,
        others=others,
        progress=progress,
    )
