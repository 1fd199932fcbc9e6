"""Resolution under a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.sources.resolution import resolve
from mergeops.sources.source import Resolved


def resolve_with_bar(
    recipe: Recipe,
    progress: Progress,
    *,
    cache_dir: Path,
    digests: Mapping[Path, str] | None = None,
    hash_later: bool = False,
) -> Resolved:
    """As ``resolve``, shown as it reads.

    Args:
        recipe: see ``resolve``, and so are the others.
        progress: where the bar is.
        cache_dir: see ``resolve``.
        digests: see ``resolve``.
        hash_later: see ``resolve``.
    """
    with progress.bar("reading sources", is_bytes=True) as tick:
        return resolve(
            recipe,
            cache_dir=cache_dir,
            digests=digests,
            hash_later=hash_later,
            progress=lambda _label, done, total: tick(done, total),
        )
