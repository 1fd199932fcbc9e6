"""A directory whose weights may be in a format that is converted before it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mergeops.architectures import converted_gguf
from mergeops.checkpoint import converted
from mergeops.sources.contents import Contents, examine
from mergeops.sources.remote.directory import LocalDirectory, Progress


def readable(
    path: Path, cache_dir: Path, progress: Progress | None, contents: Contents | None = None
) -> Path:
    """The directory, or where its pickled or GGUF weights are kept as safetensors.

    Args:
        path: the directory.
        cache_dir: where conversions are kept.
        progress: called with (what, bytes done, bytes in all).
        contents: what it holds, where that is known.

    Raises:
        SourceError: its weights cannot be converted.
    """
    contents = contents or examine(LocalDirectory(path))
    if contents.convertible is None:
        return path
    if contents.gguf is not None:
        file = path / contents.gguf
        return converted_gguf(file, cache_dir, _ticking(progress, file.name))
    return converted(path, cache_dir, _ticking(progress, path.name))


def _ticking(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(f"converting {name}", done, total)
