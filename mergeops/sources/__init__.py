"""Sources: from what a recipe names to a directory of bytes, pinned by hash.

``resolve`` is the way in. A ``Source`` is what everybody downstream works with: a local directory
in Hugging Face layout (or a LoRA adapter with the model it applies to), the digest of its
weights, and the MLflow run and model that it came from, where known. One module a scheme:

    local    a directory             runs     runs:/ID[/checkpoint-N]
    hub      hf://ORG/NAME[@REV]     models   models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID

``adopt`` is the other way round: from an MLflow experiment to what a recipe may name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mergeops.errors import about

if TYPE_CHECKING:
    from mergeops.checkpoint.layout import FileStamp
    from mergeops.recipe import Recipe
    from mergeops.settings import OutputSpec, TrackingSpec


@dataclass(frozen=True)
class Source:
    """One input checkpoint, found and pinned."""

    name: str
    """The recipe's short name, or ``base``."""
    uri: str
    """As the recipe wrote it."""
    path: Path
    """Local directory: a full checkpoint, or the adapter's directory."""
    sha256: str
    """Digest of the weights: of the sorted (file name, sha256) of all its weight files, and for an
    adapter of its config and its base's digest too. Equal digests mean equal weights."""
    adapter_base: Path | None = None
    """For a LoRA adapter: the directory of the full model that it applies to."""
    run_id: str | None = None
    """MLflow training run that wrote the checkpoint."""
    model_id: str | None = None
    """MLflow LoggedModel (m-...) of the checkpoint."""
    registered: str | None = None
    """Registered model version, NAME/VERSION, that the URI named."""
    revision: str | None = None
    """Commit of a hub repository."""
    stamps: Mapping[Path, FileStamp] = field(default_factory=dict, compare=False)
    """What its weight files, and its base's, looked like when they were hashed."""

    @property
    def is_adapter(self) -> bool:
        """Whether ``path`` holds a LoRA adapter, not a full model."""
        return self.adapter_base is not None


@dataclass(frozen=True)
class Resolved:
    """Everything that a recipe names, found and pinned."""

    base: Source | None
    sources: dict[str, Source]
    """In the recipe's order."""


def resolve(
    recipe: Recipe,
    *,
    cache_dir: Path,
    tracking_uri: str | None = None,
    digests: Mapping[Path, str] = MappingProxyType({}),
    progress: Callable[[str, int, int], None] | None = None,
) -> Resolved:
    """Find and pin a recipe's base and sources.

    Args:
        recipe: its ``base``, ``sources``, ``path_map`` and ``tracking`` are read.
        cache_dir: downloads and digests of files are kept below it.
        tracking_uri: in place of the recipe's.
        digests: directory -> digest of its weights, where they need not be read for it.
        progress: called with (what, bytes done, bytes in all).

    Raises:
        SourceError: something is not there, not whole or not a checkpoint; names it.
        TrackingError: MLflow is needed and cannot be reached.
    """
    import dataclasses

    from mergeops.sources.resolver import Resolver

    tracking = recipe.tracking
    if tracking_uri is not None:
        tracking = dataclasses.replace(tracking, uri=tracking_uri)
    resolver = Resolver(
        cache_dir,
        tracking,
        recipe.path_map,
        recipe.base,
        progress,
        digests,
        code=recipe.trust_remote_code,
        cache_limit=_cache_limit(recipe.output),
    )
    base = None
    with about("base"):
        if recipe.base_adapter is not None:
            base = resolver.adapter("base", recipe.base_adapter, recipe.base)
        elif recipe.base is not None:
            base = resolver.full("base", recipe.base)
    sources = {}
    for name, spec in recipe.sources.items():
        with about(f"sources.{name}"):
            sources[name] = resolver.source(name, spec.uri, spec.base)
    return Resolved(base, sources)


def resolve_uri(
    uri: str,
    *,
    cache_dir: Path,
    name: str = "source",
    base: str | None = None,
    tracking: TrackingSpec | None = None,
    path_map: Mapping[str, str] | None = None,
    output: OutputSpec | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Source:
    """Find and pin one checkpoint.

    Args:
        uri: as in a recipe.
        cache_dir: downloads and digests of files are kept below it.
        name: the source's name.
        base: for a LoRA adapter, the URI of its base, where its own config does not lead there.
        tracking: where runs:/ and models:/ are; default MLFLOW_TRACKING_URI.
        path_map: moved storage.
        output: its ``cache_limit`` holds.
        progress: called with (what, bytes done, bytes in all).

    Raises:
        SourceError, TrackingError: as ``resolve``.
    """
    from mergeops.settings import TrackingSpec
    from mergeops.sources.resolver import Resolver

    resolver = Resolver(
        cache_dir,
        tracking or TrackingSpec(),
        path_map or {},
        base,
        progress,
        cache_limit=_cache_limit(output) if output else None,
    )
    return resolver.source(name, uri, base)


def locate(
    where: str,
    *,
    cache_dir: Path = Path("mergeops-work/cache"),
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The local directory of a path or URI; a path is taken as it is, checkpoint or not.

    Raises:
        SourceError, TrackingError: as ``resolve``.
    """
    from mergeops.checkpoint.hold import hold
    from mergeops.settings import TrackingSpec
    from mergeops.sources.place import local_path
    from mergeops.sources.resolver import Resolver

    path = local_path(where)
    if path is not None:
        hold(path)
        return path
    return Resolver(cache_dir, TrackingSpec(), {}, None, progress).fetched(where)


def _cache_limit(output: OutputSpec) -> int | None:
    from mergeops.shards import parse_size

    if output.cache_limit is None:
        return None
    return parse_size("output.cache_limit", output.cache_limit)
