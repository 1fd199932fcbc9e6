"""Which sources must be hashed before they are merged, and which may be while they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mergeops.checkpoint import FileStamp, known_sha256, look_alike, stamp, weight_files
from mergeops.sources.source import Resolved, Source


def is_hashed(path: Path, cache_dir: Path) -> bool:
    """Whether the digest of a full checkpoint is known without reading it.

    Raises:
        SourceError: as ``weight_files``.
    """
    files = weight_files(path)
    return len(known_sha256(files, cache_dir)) == len(files)


def stamps_of(path: Path) -> dict[Path, FileStamp]:
    """What the weight files of a full checkpoint look like now.

    Raises:
        SourceError: as ``weight_files``.
    """
    return {path.resolve() / file.name: stamp(file) for file in weight_files(path)}


def settled(
    found: Resolved, hashed: Collection[Path], settle: Callable[[Source], Source]
) -> Resolved:
    """With the digests that cannot wait.

    Args:
        found: some of its full models have no digest.
        hashed: directories whose digests are known by now, since something else needed them.
        settle: gives a source its digest.

    Raises:
        SourceError: a file cannot be read.
    """
    names = _twins(found.sources.values())

    def settle_due(source: Source) -> Source:
        is_due = source.name in names or source.path.resolve() in hashed
        return settle(source) if is_due and not source.sha256 else source

    sources = {name: settle_due(source) for name, source in found.sources.items()}
    return Resolved(found.base and settle_due(found.base), sources)


def _twins(sources: Iterable[Source]) -> set[str]:
    """Names of full sources that may hold the same weights as another: only digests can tell."""
    names: set[str] = set()
    for first, second in itertools.combinations([s for s in sources if not s.is_adapter], 2):
        if not (first.sha256 and second.sha256):
            its, others = weight_files(first.path), weight_files(second.path)
            if [file.name for file in its] == [file.name for file in others] and all(
                look_alike(*pair) for pair in zip(its, others, strict=True)
            ):
                names |= {first.name, second.name}
    return names
