"""Checkpoints from an artifact store, kept in a cache: named by content, complete or not there.

Only what a merge reads is fetched: safetensors, JSON, tokenizer files, chat templates, README.
optimizer.pt (twice the weights), pickles and code stay where they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergeops.errors import SourceError
from mergeops.sources.place import Entry, Place, Progress, RemotePlace

MARKER = "mergeops-download.json"
"""Written last: its presence means that every file is there and whole."""

SUFFIXES = (".safetensors", ".json", ".jinja")
NAMES = (
    "README.md",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tiktoken.model",
    "tokenizer.model",
    "vocab.txt",
)
POLL_S = 0.25


def wanted(name: str) -> bool:
    """Whether a file is part of what a merge reads."""
    return name in NAMES or name.endswith(SUFFIXES)


def fetch(place: Place, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The directory on this machine: where it is, or downloaded, or found downloaded.

    Args:
        place: a checkpoint's directory.
        cache_dir: downloads are kept below it, by URI and sizes.
        progress: told how many bytes have arrived.

    Raises:
        SourceError: the store does not deliver, or delivers another size than it lists.
    """
    if place.local is not None:
        return place.local
    assert isinstance(place, RemotePlace)
    entries = [e for e in place.entries() if not e.is_dir and wanted(e.name) and e.name != MARKER]
    listing = {entry.name: entry.size for entry in entries}
    text = json.dumps({"uri": place.shown, "files": listing}, sort_keys=True)
    folder = cache_dir / "downloads" / hashlib.sha256(text.encode()).hexdigest()[:24]
    if (folder / MARKER).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / MARKER).is_file():
            _download(place, entries, folder, progress)
            _write_last(folder / MARKER, text)
    return folder


def _download(
    place: RemotePlace, entries: list[Entry], folder: Path, progress: Progress | None
) -> None:
    total, done = sum(entry.size for entry in entries), 0
    for entry in entries:
        target = folder / entry.name
        # A file that is there under its own name arrived whole: the run before was killed later.
        if not target.is_file():
            with (
                tempfile.TemporaryDirectory(dir=folder, prefix="part-") as part,
                _watched(Path(part), place.shown, done, total, progress),
            ):
                arrived = place.download(entry.name, Path(part))
                size = arrived.stat().st_size
                if entry.size and size != entry.size:
                    raise SourceError(
                        f"{place.shown}/{entry.name} arrived with {size} bytes, the store lists "
                        f"{entry.size}; run the command again"
                    )
                os.replace(arrived, target)
        done += entry.size
        if progress is not None:
            progress(place.shown, done, total)


@contextmanager
def _watched(
    part: Path, what: str, done: int, total: int, progress: Progress | None
) -> Iterator[None]:
    # MLflow tells nothing while a file arrives; its size on disk does.
    if progress is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            here = 0
            for file in part.rglob("*"):
                try:
                    here += file.stat().st_size if file.is_file() else 0
                except OSError:
                    continue
            progress(what, min(done + here, total), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write_last(marker: Path, text: str) -> None:
    temporary = marker.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, marker)
