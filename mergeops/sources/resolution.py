"""From a recipe, a URI or a path to pinned sources; each URI is found, fetched and hashed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mergeops.checkpoint import (
    ADAPTER,
    FileStamp,
    adapter_sha256,
    combined_sha256,
    files_sha256,
    hold,
    stamp,
    weights_sha256,
)
from mergeops.errors import SourceError, about
from mergeops.recipe import OutputSpec, Recipe, TrackingSpec, parse_size
from mergeops.recover import open_on_base
from mergeops.sources.adapter_base import (
    SaidBase,
    check_told,
    is_base,
    on_this_machine,
    said_base,
    two_models,
)
from mergeops.sources.completed import with_companions
from mergeops.sources.contents import Location, check_unwrapped, examine
from mergeops.sources.find_context import FindContext
from mergeops.sources.hash_later import is_hashed, settled, stamps_of
from mergeops.sources.links import check_links
from mergeops.sources.put_together import put_together
from mergeops.sources.readable import readable
from mergeops.sources.remote.directory import LocalDirectory, Progress
from mergeops.sources.remote.download import fetch
from mergeops.sources.run_note import noted_base
from mergeops.sources.schemes import local_path, scheme_of
from mergeops.sources.source import Resolved, Source
from mergeops.sources.training_runs import open_store


def resolve(
    recipe: Recipe,
    *,
    cache_dir: Path,
    tracking_uri: str | None = None,
    digests: Mapping[Path, str] | None = None,
    hash_later: bool = False,
    progress: Progress | None = None,
) -> Resolved:
    """Find and pin a recipe's base and sources.

    Args:
        recipe: its ``base``, ``sources``, ``path_map`` and ``tracking`` are read.
        cache_dir: downloads and digests of files are kept below it.
        tracking_uri: in place of the recipe's.
        digests: directory -> digest of its weights, where they need not be read for it.
        hash_later: leave full models unhashed that whoever merges them will hash, where their
            digests are not known and need not be.
        progress: called with (what, bytes done, bytes in all).

    Raises:
        SourceError: something is not there, not whole or not a checkpoint; names it.
        TrackingError: MLflow is needed and cannot be reached.
    """
    tracking = recipe.tracking
    if tracking_uri is not None:
        tracking = dataclasses.replace(tracking, uri=tracking_uri)
    resolver = _Resolver(
        cache_dir,
        tracking=tracking,
        path_map=recipe.path_map,
        base=recipe.base,
        progress=progress,
        code=recipe.trust_remote_code,
        output=recipe.output,
        digests=dict(digests or {}),
        hash_later=hash_later,
    )
    base = None
    with about("base"):
        if recipe.base_adapter is not None:
            base = resolver.source("base", recipe.base_adapter, recipe.base)
            if not base.is_adapter:
                raise SourceError(
                    f"base_adapter is {recipe.base_adapter}, a full model; it takes a LoRA adapter"
                )
        elif recipe.base is not None:
            base = resolver.full("base", recipe.base)
    sources = {}
    for name, spec in recipe.sources.items():
        with about(f"sources.{name}"):
            sources[name] = resolver.source(name, spec.uri, spec.base)
    return settled(Resolved(base, sources), resolver.digests.keys(), resolver.settle)


def resolve_uri(
    uri: str,
    *,
    cache_dir: Path,
    name: str = "source",
    base: str | None = None,
    tracking: TrackingSpec | None = None,
    path_map: Mapping[str, str] | None = None,
    output: OutputSpec | None = None,
    progress: Progress | None = None,
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
    resolver = _Resolver(
        cache_dir,
        tracking=tracking or TrackingSpec(),
        path_map=path_map or {},
        base=base,
        progress=progress,
        output=output,
    )
    return resolver.source(name, uri, base)


def locate(
    where: str,
    *,
    cache_dir: Path = Path("mergeops-work/cache"),
    progress: Progress | None = None,
) -> Path:
    """The local directory of a path or URI; a path is taken as it is, checkpoint or not.

    Raises:
        SourceError, TrackingError: as ``resolve``.
    """
    path = local_path(where)
    if path is not None:
        hold(path)
        return path
    return _Resolver(cache_dir, progress=progress).find(where)[1]


@dataclass
class _Resolver:
    """Finds sources, and remembers what it found."""

    cache_dir: Path
    tracking: TrackingSpec = field(default_factory=TrackingSpec, kw_only=True)
    """Reached only when a URI needs it."""
    path_map: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    base: str | None = field(default=None, kw_only=True)
    """The recipe's base, which adapters may be meant for."""
    progress: Progress | None = field(default=None, kw_only=True)
    code: bool = field(default=False, kw_only=True)
    output: OutputSpec | None = field(default=None, kw_only=True)
    digests: dict[Path, str] = field(default_factory=dict, kw_only=True)
    """Directory -> digest of its weights."""
    hash_later: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        reach = cache(lambda: open_store(self.tracking, self.path_map))
        self._context = FindContext(training_runs=reach, code=self.code)
        self._locations: dict[str, tuple[Location, Path]] = {}
        self._stamps: dict[Path, dict[Path, FileStamp]] = {}
        self._limit = None
        if self.output is not None and self.output.cache_limit is not None:
            self._limit = parse_size("output.cache_limit", self.output.cache_limit)

    def source(self, name: str, uri: str, base: str | None = None) -> Source:
        """A full checkpoint, or an adapter with its base."""
        location, path = self.find(uri)
        if location.contents.has_adapter and base is None:
            raise two_models(name, uri, f"set sources.{name}.base to the model that it applies to")
        if location.contents.kind == "full" and not location.contents.has_adapter:
            return self._full(name, uri)
        if location.contents.sharded is not None:
            return self._sharded(name, uri, path, base)
        applied_to = self._base_of(name, uri, path, base)
        own = stamp(path / ADAPTER)
        digest = adapter_sha256(
            path,
            self._digest(applied_to, f"base of {name}"),
            cache_dir=self.cache_dir,
            progress=self._ticking(f"hashing {name}"),
        )
        stamps = {path / ADAPTER: own, **self._stamps.get(applied_to.resolve(), {})}
        return self._pinned(name, uri, digest, stamps, applied_to)

    def full(self, name: str, uri: str) -> Source:
        """A full checkpoint.

        Raises:
            SourceError: it is an adapter, or as ``source``.
        """
        location, path = self.find(uri)
        if location.contents.sharded is not None:
            raise SourceError(f"{name}: {location.contents.problem}")
        if location.contents.kind == "lora":
            said = said_base(path, location)
            trained_on = said.shown if said is not None else "its config does not say"
            raise SourceError(
                f"{name} is {uri}, a LoRA adapter; a base must be a full model: name the model "
                f"that it was trained on ({trained_on})"
            )
        if location.contents.has_adapter and not name.startswith("sources."):
            raise two_models(name, uri, "name it as a source with the model that it applies to")
        return self._full(name, uri)

    def find(self, uri: str) -> tuple[Location, Path]:
        """Where a checkpoint lies, and its directory on this machine; it is not hashed yet."""
        if uri not in self._locations:
            location = scheme_of(uri).find(uri, self._context)
            if location.directory.local is not None:
                check_links(location.directory.local)
            if location.contents.convertible and location.directory.local is not None:
                here = readable(
                    location.directory.local, self.cache_dir, self.progress, location.contents
                )
                directory = LocalDirectory(here)
                location = dataclasses.replace(
                    location, directory=directory, contents=examine(directory)
                )
            if location.contents.usable is None:
                raise SourceError(str(location.contents.problem))
            if location.contents.pieces is not None:
                location, path = put_together(location, self.cache_dir, self.progress, self._limit)
            else:
                path = fetch(location.directory, self.cache_dir, self.progress, limit=self._limit)
            if location.contents.kind == "full":
                check_unwrapped(path)
            path = with_companions(path, location, self.cache_dir, self.progress, limit=self._limit)
            _hold(uri, path)
            self._locations[uri] = location, path
        return self._locations[uri]

    def _full(self, name: str, uri: str) -> Source:
        path = self.find(uri)[1]
        real = path.resolve()
        if self.hash_later and real not in self.digests and not is_hashed(path, self.cache_dir):
            return self._pinned(name, uri, "", stamps_of(path))
        digest = self._digest(path, name)
        return self._pinned(name, uri, digest, self._stamps.get(real, {}))

    def settle(self, source: Source) -> Source:
        """The source with its digest."""
        self.hash_later = False
        return self._full(source.name, source.uri)

    def _sharded(self, name: str, uri: str, path: Path, base: str | None) -> Source:
        """What a sharded training left, read where it lies, with the model that was trained."""
        trained = base or self.base or noted_base(LocalDirectory(path))
        if trained is None:
            raise SourceError(
                f"{uri} holds what a sharded training left; set sources.{name}.base to the model "
                f"that was trained, or put it together: `mergeops recover {path} OUT --base BASE`"
            )
        base_path = self.full(
            "base" if trained == self.base else f"sources.{name}.base", trained
        ).path
        model = open_on_base(path, base_path)
        stamps = {model.path / file: seen for file, seen in model.stamps.items()}
        digests = files_sha256(
            list(stamps), cache_dir=self.cache_dir, progress=self._ticking(f"hashing {name}")
        )
        files = {str(file.relative_to(model.path)): digest for file, digest in digests.items()}
        # The base says what the tensors are called, and whether they are all there.
        files["base"] = self._digest(base_path, f"base of {name}")
        return self._pinned(name, uri, combined_sha256(files), stamps, base_path)

    def _pinned(
        self,
        name: str,
        uri: str,
        sha256: str,
        stamps: Mapping[Path, FileStamp],
        adapter_base: Path | None = None,
    ) -> Source:
        location, path = self.find(uri)
        return Source(
            name=name,
            uri=uri,
            path=path,
            sha256=sha256,
            adapter_base=adapter_base,
            run_id=location.run_id,
            model_id=location.model_id,
            registered=location.registered,
            revision=location.revision,
            stamps=stamps,
        )

    def _base_of(self, name: str, uri: str, path: Path, base: str | None) -> Path:
        """The directory of the model that an adapter applies to."""
        said = said_base(path, self.find(uri)[0])
        if base is not None:
            check_told(said, base)
            return self.full(f"sources.{name}.base", base).path
        if said is not None:
            if self.base is not None and is_base(said, self.base):
                return self.full("base", self.base).path
            near = on_this_machine(said, self.path_map)
            noted = self.find(uri)[0].base
            if near is None and noted is not None:
                # A relative name in the adapter's config; MLflow has the whole path.
                near = on_this_machine(SaidBase(noted), self.path_map)
            if near is not None:
                _hold(said.name, near)
                check_links(near)
                return readable(near.absolute(), self.cache_dir, self.progress)
        trained_on = "does not say which model it was trained on"
        if said is not None:
            trained_on = f"was trained on {said.shown}, which is {said.why_not_here}"
        raise SourceError(
            f"{uri} is a LoRA adapter that {trained_on}; set sources.{name}.base to that model's "
            "directory or hf:// URI"
        )

    def _digest(self, path: Path, name: str) -> str:
        real = path.resolve()
        if real not in self.digests:
            self._stamps[real] = stamps_of(path)
            self.digests[real] = weights_sha256(
                path, cache_dir=self.cache_dir, progress=self._ticking(f"hashing {name}")
            )
        return self.digests[real]

    def _ticking(self, what: str) -> Callable[[int, int], None] | None:
        report = self.progress
        return None if report is None else lambda done, total: report(what, done, total)


def _hold(uri: str, path: Path) -> None:
    if not hold(path):
        raise SourceError(f"{path} (from {uri}) was deleted just now, maybe by mergeops gc")
