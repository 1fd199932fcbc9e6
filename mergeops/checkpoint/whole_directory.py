"""A directory that is whole under its name, or not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.checkpoint.durable import locked, no_work, replace_with, sync_directory
from mergeops.checkpoint.manifest import MANIFEST, WrittenFile, read_manifest, write_manifest
from mergeops.errors import MergeError


class Destination:
    """The directory that is to be made: files are written into a hidden sibling, which takes the
    name when all are on the disk. A killed try goes on with the next file.

    Args:
        out: its name.
        key: digest of what is written; another one's unfinished files are dropped.
        kind: what was done to it, as the manifest calls it.
    """

    JOURNAL = "recovered.json"
    """Beside the unfinished files: which of them are finished."""

    def __init__(self, out: Path, key: str, kind: str = "recovered") -> None:
        self.out = out
        self.key = key
        self.kind = kind
        self.partial = out.with_name(f".{out.name}.{kind.removesuffix('ed')}ing")
        self.finished: dict[str, WrittenFile] = {}

    def is_done(self) -> bool:
        """Whether this very result is there.

        Raises:
            MergeError: something else is.
        """
        if not self.out.exists():
            return False
        if not self.out.is_dir():
            raise MergeError(f"{self.out} is a file; the output must be a new or empty directory")
        manifest = read_manifest(self.out)
        if manifest is None and any(self.out.iterdir()):
            raise MergeError(
                f"{self.out} is not empty and holds no {MANIFEST}; choose a new directory, or "
                "empty it"
            )
        if manifest is not None and manifest.get(self.kind, {}).get("key") != self.key:
            raise MergeError(
                f"{self.out} holds something else already; choose a new directory, or remove it"
            )
        return manifest is not None

    @contextlib.contextmanager
    def opened(self, needed: int) -> Iterator[None]:
        """Hold the unfinished directory for the block, and find what an earlier try finished.

        Raises:
            MergeError: it cannot be made, another process writes it, or there is no room.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            with locked(self.partial, wait=False, is_directory=True):
                if (strange := no_work(self.partial)) is not None:
                    raise MergeError(
                        f"{self.partial / strange} is a link, or no file, and what is written here "
                        "would go where it leads; remove it, or choose another output"
                    )
                self._read_journal()
                present = sum(file.size for file in self.finished.values())
                free = shutil.disk_usage(self.partial).free + present
                if free < needed:
                    raise MergeError(
                        f"{self.out} needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are "
                        "free there; free some space, or write it elsewhere"
                    )
                yield
        except BlockingIOError as error:
            raise MergeError(
                f"another process is writing {self.out}; wait until it ends"
            ) from error
        except OSError as error:
            raise MergeError(
                f"{self.out} cannot be written: {error.strerror or error}; what is done so far is "
                "kept, and the same command goes on from there"
            ) from error

    def finish(self, name: str, file: WrittenFile) -> None:
        """Note that a file is whole and on the disk."""
        self.finished[name] = file
        noted = {n: [f.sha256, f.size, dict(f.tensors)] for n, f in self.finished.items()}
        with replace_with(self.partial / self.JOURNAL) as temporary:
            temporary.write_text(json.dumps({"key": self.key, "files": noted}), encoding="utf-8")

    def close(self, content: Mapping[str, Any], names: Sequence[str]) -> None:
        """Write the manifest and give the directory its name."""
        (self.partial / self.JOURNAL).unlink(missing_ok=True)
        write_manifest(self.partial, content, names, self.finished)
        sync_directory(self.partial)
        if self.out.exists():
            self.out.rmdir()
        os.rename(self.partial, self.out)
        sync_directory(self.out.absolute().parent)

    def _read_journal(self) -> None:
        try:
            noted = json.loads((self.partial / self.JOURNAL).read_text(encoding="utf-8"))
            if noted["key"] == self.key:
                for name, (sha256, size, tensors) in noted["files"].items():
                    if (self.partial / name).stat().st_size == size:
                        self.finished[name] = WrittenFile(sha256, size, tensors)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self.finished = {}
        for entry in self.partial.iterdir():
            if entry.name in (self.JOURNAL, *self.finished):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
