"""Scores that were made before: on disk, and in the tracking store for other runs and machines.

One record for each model, task and part. A file is complete or absent: it is written beside its
place, synced and renamed. What is damaged, or about something else, counts as absent. While a task
is asked, its answers are kept in a journal beside the record, so a crash loses seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mergeops.errors import EvaluationError, MergeopsError

log = logging.getLogger(__name__)

FORMAT = 2


class SharedScores(Protocol):
    """Records as text in a store that other machines read too."""

    def find(self, weights_sha256: str, keys: Collection[str]) -> Mapping[str, str]:
        """The records that are there, by key."""

    def keep(self, weights_sha256: str, records: Mapping[str, str]) -> None:
        """Add records, by key."""


class ScoreStore:
    """Finds and keeps records by what they are about.

    Args:
        work_dir: records are kept below ``scores/`` in it.
        shared: asked for what is not on disk; where it fails, scoring goes on without it.
    """

    def __init__(self, work_dir: Path, shared: SharedScores | None = None) -> None:
        self._work_dir = work_dir
        self._shared = shared

    def find(self, headers: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
        """What is known of one model.

        Args:
            headers: task -> what its record is about, the same ``weights_sha256`` in all.
        """
        found = {}
        for task, header in headers.items():
            if (record := read(self._file(header), header)) is not None:
                found[task] = record
        missing = {key_of(h): (task, h) for task, h in headers.items() if task not in found}
        if self._shared is None or not missing:
            return found
        weights = next(iter(headers.values()))["weights_sha256"]
        try:
            texts = self._shared.find(weights, list(missing))
        except MergeopsError as error:
            log.warning("scores of other machines cannot be looked up: %s", error)
            return found
        for key, (task, header) in missing.items():
            if (record := _parse(texts.get(key, ""), header)) is not None:
                found[task] = record
                _write(self._file(header), texts[key])
        return found

    def keep(self, header: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Keep a record on disk, all or nothing, and drop its journal.

        Raises:
            EvaluationError: the file cannot be written.
        """
        content = {**record, "header": dict(header)}
        text = json.dumps(
            {"format": FORMAT, "sha256": _sha256(content), "record": content}, allow_nan=False
        )
        _write(self._file(header), text)
        self.journal(header).drop()

    def share(self, headers: Collection[Mapping[str, str]]) -> None:
        """Copy records of one model from disk to the shared store."""
        if self._shared is None or not headers:
            return
        weights = next(iter(headers))["weights_sha256"]
        texts = {key_of(h): self._file(h).read_text(encoding="utf-8") for h in headers}
        try:
            self._shared.keep(weights, texts)
        except MergeopsError as error:
            log.warning("scores are kept on this machine only: %s", error)

    def journal(self, header: Mapping[str, str]) -> Journal:
        """Where the answers of a task that is being asked are kept."""
        return Journal(self._file(header).with_suffix(".journal"))

    def _file(self, header: Mapping[str, str]) -> Path:
        folder = self._work_dir / "scores" / header["weights_sha256"][:16]
        return folder / f"{key_of(header)[:16]}.{header['part']}.json"


@dataclass(frozen=True)
class Journal:
    """The answers to the first questions of a task, in pieces that were asked at once."""

    path: Path

    def read(self) -> list[list[Any]]:
        """The pieces so far; none where the file is not whole."""
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            whole = stored["sha256"] == _sha256(stored["pieces"])
        except (OSError, ValueError, TypeError, KeyError):
            return []
        return list(stored["pieces"]) if whole else []

    def write(self, pieces: list[list[Any]]) -> None:
        """Keep these, all or nothing.

        Raises:
            EvaluationError: the file cannot be written.
        """
        _write(self.path, json.dumps({"sha256": _sha256(pieces), "pieces": pieces}))

    def drop(self) -> None:
        """Forget all."""
        self.path.unlink(missing_ok=True)


def key_of(header: Mapping[str, str]) -> str:
    """sha256 hex of what a record is about."""
    return _sha256(dict(header))


def read(path: Path, header: Mapping[str, str]) -> dict[str, Any] | None:
    """The record in a file, or None if it is not there, not whole, or not what the header says."""
    try:
        return _parse(path.read_text(encoding="utf-8"), header)
    except (OSError, ValueError):
        return None


def _parse(text: str, header: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        stored = json.loads(text)
        record = stored["record"]
        whole = stored["format"] == FORMAT and stored["sha256"] == _sha256(record)
    except (ValueError, TypeError, KeyError):
        return None
    if not whole or record.get("header") != dict(header):
        return None
    found: dict[str, Any] = record
    return found


def _write(path: Path, text: str) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise EvaluationError(f"scores cannot be kept in {path}: {error.strerror}") from error


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
