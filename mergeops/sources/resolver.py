"""One recipe's URIs, each found, fetched and hashed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from mergeops.checkpoint.hold import hold
from mergeops.checkpoint.layout import ADAPTER, FileStamp, stamp, weight_files
from mergeops.errors import SourceError
from mergeops.settings import TrackingSpec
from mergeops.sources import Source, adapter, hub, local, models, runs
from mergeops.sources.contents import examine
from mergeops.sources.download import fetch
from mergeops.sources.location import Location
from mergeops.sources.place import LocalPlace, Progress, local_path
from mergeops.sources.store import Store, open_remote, open_store


class Resolver:
    """Finds sources, and remembers what it found.

    Args:
        cache_dir: downloads and digests of files are kept below it.
        tracking: where runs:/ and models:/ are; reached only when one is named.
        path_map: moved storage.
        base: the recipe's base, which adapters may be meant for.
        progress: called with (what, bytes done, bytes in all).
        digests: directory -> digest of its weights, where that is known.
        code: whether the code that hub repositories carry is wanted, too.
        cache_limit: bytes that downloads may take on disk; None takes what the disk has.
    """

    def __init__(
        self,
        cache_dir: Path,
        tracking: TrackingSpec,
        path_map: Mapping[str, str],
        base: str | None,
        progress: Progress | None = None,
        digests: Mapping[Path, str] = MappingProxyType({}),
        code: bool = False,
        cache_limit: int | None = None,
    ) -> None:
        self._cache_dir = cache_dir
        self._tracking = tracking
        self._path_map = path_map
        self._base = base
        self._progress = progress
        self._store: Store | None = None
        self._found: dict[str, tuple[Location, Path]] = {}
        self._digests = dict(digests)
        self._code = code
        self._cache_limit = cache_limit
        self._stamps: dict[Path, dict[Path, FileStamp]] = {}

    def source(self, name: str, uri: str, base: str | None = None) -> Source:
        """A full checkpoint, or an adapter with its base.

        Raises:
            SourceError, TrackingError: as ``mergeops.sources.resolve``.
        """
        location, path = self._find(uri)
        if location.kind == "full":
            return self._pinned(name, uri, location, path)
        from mergeops.checkpoint import adapter_sha256

        applied_to = self._base_of(name, uri, path, base)
        own = stamp(path / ADAPTER)
        digest = adapter_sha256(
            path,
            self._digest(applied_to, f"base of {name}"),
            cache_dir=self._cache_dir,
            progress=self._ticking(f"hashing {name}"),
        )
        stamps = {path / ADAPTER: own, **self._stamps.get(applied_to.resolve(), {})}
        return _source(name, uri, location, path, digest, stamps, applied_to)

    def adapter(self, name: str, uri: str, base: str | None) -> Source:
        """An adapter with its base.

        Raises:
            SourceError: it is a full model, or as ``source``.
        """
        found = self.source(name, uri, base)
        if not found.is_adapter:
            raise SourceError(f"{name}_adapter is {uri}, a full model; it takes a LoRA adapter")
        return found

    def full(self, name: str, uri: str) -> Source:
        """A full checkpoint.

        Raises:
            SourceError: it is an adapter, or as ``source``.
        """
        location, path = self._find(uri)
        if location.kind == "lora":
            raise SourceError(
                f"{name} is {uri}, a LoRA adapter; a base must be a full model: name the model "
                f"that it was trained on ({adapter.said_base(path) or 'its config does not say'})"
            )
        return self._pinned(name, uri, location, path)

    def _pinned(self, name: str, uri: str, location: Location, path: Path) -> Source:
        digest = self._digest(path, name)
        return _source(name, uri, location, path, digest, self._stamps.get(path.resolve(), {}))

    def fetched(self, uri: str) -> Path:
        """The local directory of a checkpoint, not hashed.

        Raises:
            SourceError, TrackingError: as ``source``.
        """
        return self._find(uri)[1]

    def _find(self, uri: str) -> tuple[Location, Path]:
        if uri not in self._found:
            location = self._locate(uri)
            path = fetch(location.place, self._cache_dir, self._progress, limit=self._cache_limit)
            _hold(uri, path)
            self._found[uri] = location, path
        return self._found[uri]

    def _locate(self, uri: str) -> Location:
        if uri.startswith(runs.SCHEME):
            return runs.find(uri, self._reach())
        if uri.startswith(models.SCHEME):
            return models.find(uri, self._reach())
        if uri.startswith(hub.SCHEME):
            snapshot = hub.find(uri, code=self._code)
            if examine(LocalPlace(snapshot.path)).kind is None:
                snapshot = hub.find(uri, code=self._code, pickled=True)
            here = self._readable(snapshot.path)
            kind = local.find(uri, here)
            return Location(LocalPlace(here), kind, revision=snapshot.revision)
        path = local_path(uri)
        if path is None:
            return self._in_store(uri)
        path = self._readable(path.absolute())
        return Location(LocalPlace(path), local.find(uri, path))

    def _readable(self, path: Path) -> Path:
        """The directory, or where its pickled weights are kept as safetensors."""
        if not path.is_dir() or examine(LocalPlace(path)).pickled is None:
            return path
        from mergeops.checkpoint.pickled import converted

        return converted(path, self._cache_dir, self._ticking(f"converting {path.name}"))

    def _in_store(self, uri: str) -> Location:
        # Only the server knows where mlflow-artifacts: are; a bucket needs none.
        proxied = uri.startswith("mlflow-artifacts:")
        place = self._reach().open(uri) if proxied else open_remote(uri)
        contents = examine(place)
        if contents.kind is None:
            raise SourceError(str(contents.problem))
        return Location(place, contents.kind)

    def _reach(self) -> Store:
        if self._store is None:
            self._store = open_store(self._tracking, self._path_map)
        return self._store

    def _base_of(self, name: str, uri: str, path: Path, base: str | None) -> Path:
        if base is not None:
            return self.full(f"sources.{name}.base", base).path
        said = adapter.said_base(path)
        if said is not None:
            there = adapter.reachable(said, self._path_map)
            if there is not None:
                _hold(said, there)
                return self._readable(there.absolute())
            if self._base is not None and adapter.is_same(said, self._base):
                return self.full("base", self._base).path
        trained_on = (
            f"was trained on {said}, which is not reachable from here"
            if said
            else ("does not say which model it was trained on")
        )
        raise SourceError(
            f"{uri} is a LoRA adapter that {trained_on}; set sources.{name}.base to that model's "
            "directory or hf:// URI"
        )

    def _digest(self, path: Path, name: str) -> str:
        from mergeops.checkpoint import weights_sha256

        real = path.resolve()
        if real not in self._digests:
            self._stamps[real] = {real / file.name: stamp(file) for file in weight_files(path)}
            self._digests[real] = weights_sha256(
                path, cache_dir=self._cache_dir, progress=self._ticking(f"hashing {name}")
            )
        return self._digests[real]

    def _ticking(self, what: str) -> Callable[[int, int], None] | None:
        report = self._progress
        return None if report is None else lambda done, total: report(what, done, total)


def _hold(uri: str, path: Path) -> None:
    if not hold(path):
        raise SourceError(f"{path} (from {uri}) was deleted just now, maybe by mergeops gc")


def _source(
    name: str,
    uri: str,
    location: Location,
    path: Path,
    sha256: str,
    stamps: Mapping[Path, FileStamp],
    adapter_base: Path | None = None,
) -> Source:
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
