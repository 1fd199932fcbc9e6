"""Which tensors of an unfinished merge are finished: a line with a checksum for each."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

JOURNAL = "journal.jsonl"
_log = logging.getLogger(__name__)


class Journal:
    """Finished tensors of an unfinished merge.

    Args:
        directory: where the merge is written.
        plan_digest: of the merge; a journal of another one is discarded, and that is said.
    """

    def __init__(self, directory: Path, plan_digest: str) -> None:
        self._path = directory / JOURNAL
        self.finished: dict[tuple[str, str], str] = {}
        """(file, tensor) -> XXH3 of the tensor's bytes, 32 hexadecimal digits."""
        head = {"plan_digest": plan_digest}
        lines, valid = _read_lines(self._path)
        if not lines or lines[0] != head:
            if len(lines) > 1:
                _log.warning(
                    "%s held the unfinished work of another merge (plan %s), which is replaced",
                    directory,
                    lines[0]["plan_digest"][:12],
                )
            lines, valid = [], 0
        for line in lines[1:]:
            self.finished[line["file"], line["tensor"]] = line["xxh3"]
        # What a crash tore off the last line must not end up inside the next one.
        self._path.touch()
        os.truncate(self._path, valid)
        self._file: IO[str] = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        if not lines:
            self._append(head)

    def add(self, file: str, tensor: str, xxh3: str) -> None:
        """Remember a finished tensor."""
        self._append({"file": file, "tensor": tensor, "xxh3": xxh3})

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def _append(self, line: Mapping[str, str]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _read_lines(path: Path) -> tuple[list[dict[str, str]], int]:
    """The lines of a journal up to the first that a crash tore, and how many bytes they are."""
    lines: list[dict[str, str]] = []
    size = 0
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return lines, size
    for text in content.splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            break
        whole = {"plan_digest"} if not lines else {"file", "tensor", "xxh3"}
        if not text.endswith(b"\n") or not isinstance(line, dict) or line.keys() != whole:
            break
        if not all(isinstance(value, str) for value in line.values()):
            break
        lines.append(line)
        size += len(text)
    return lines, size
