"""Weights that are converted to safetensors once, and kept in a cache beside links to the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mergeops.checkpoint.durable import locked, sync_directory, sync_file
from mergeops.checkpoint.layout import stamp
from mergeops.errors import SourceError

DONE = ".converted"
"""Written last: its presence means that all weights are there and whole."""
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".bin.index.json", ".gguf")


def kept_conversion(
    path: Path,
    files: Sequence[Path],
    cache_dir: Path,
    kind: str,
    convert: Callable[[Path], None],
) -> Path:
    """A directory like ``path``, with its weights as safetensors, and links to its other files.

    Args:
        path: has weights in another format.
        files: what the conversion reads.
        cache_dir: the conversion is kept below it, and found again while the files are the same.
        kind: what the weights are, for messages: ``pickled weights``.
        convert: writes the weights into an empty directory.

    Raises:
        SourceError: a file changes meanwhile, or the conversion cannot be written; or what
            ``convert`` raises.
    """
    stamps = {file: stamp(file) for file in files}
    looks = [[file.name, *dataclasses.astuple(seen)] for file, seen in stamps.items()]
    name = hashlib.sha256(json.dumps([str(path.resolve()), looks]).encode()).hexdigest()[:24]
    folder = cache_dir / "converted" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{name}.lock")):
            if not (folder / DONE).is_file():
                for old in folder.iterdir():
                    old.unlink()
                convert(folder)
                for file, seen in stamps.items():
                    if stamp(file) != seen:
                        raise SourceError(
                            f"{file} changed while it was converted; run the command again when "
                            "nobody writes it"
                        )
                for written in folder.iterdir():
                    sync_file(written)
                sync_directory(folder)
                (folder / DONE).touch()
                sync_directory(folder)
            _link_others(path, folder)
    except OSError as error:
        why = error.strerror or error
        raise SourceError(f"{path} has {kind}, which are converted to {folder}: {why}") from error
    return folder


def _link_others(path: Path, folder: Path) -> None:
    """The files beside the weights as they are now: some come or go without the weights."""
    for old in folder.iterdir():
        if old.is_symlink() and not (path / old.name).is_file():
            old.unlink()
    linked = {entry.name for entry in folder.iterdir()}
    for other in path.iterdir():
        is_weights = other.name.endswith(_OTHER_WEIGHTS)
        if other.is_file() and not is_weights and other.name not in linked:
            (folder / other.name).symlink_to(other.absolute())
