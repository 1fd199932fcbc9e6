"""Scores that were made before: on disk, and in the tracking store for other runs and machines.

One record for each model, task and part. A file is complete or absent: it is written beside its
place, synced and renamed. What is damaged, or about something else, counts as absent. While a task
is asked, its answers are kept in a journal beside the record, so a crash loses seconds. A record
also says in which way its items were asked, so that another selection of them finds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
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

    def alike(
        self, weights_sha256: str, ways: Collection[str], known: Collection[str]
    ) -> Mapping[str, str]:
        """The records that were asked in one of these ways, by key, but those that are known."""

    def keep(
        self, weights_sha256: str, records: Mapping[str, str], ways: Mapping[str, str]
    ) -> None:
        """Add records, by key, and in which way each was asked, where that can be said."""


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
        if not missing:
            return found
        weights = next(iter(headers.values()))["weights_sha256"]
        texts = self._others(lambda shared: shared.find(weights, list(missing)))
        for key, (task, header) in missing.items():
            if (record := _parse(texts.get(key, ""), header)) is not None:
                found[task] = record
                self._write(header, texts[key], record.get("way", ""))
        return found

    def alike(
        self, headers: Mapping[str, Mapping[str, str]], ways: Mapping[str, str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Records of one model on other selections of the tasks' items.

        Args:
            headers: task -> what its record is about, the same ``weights_sha256`` in all.
            ways: task -> how its items are asked now, see ``way_of``.

        Returns:
            Task -> its records.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in headers}
        wanted = {ways[task]: task for task in headers}
        for way, task in wanted.items():
            ending = f".{way[:16]}.way"
            for mark in sorted(self._file(headers[task]).parent.glob(f"*{ending}")):
                record = _read(mark.with_name(mark.name.removesuffix(ending) + ".json"))
                if record is not None and _is_alike(record, headers[task], way):
                    found[task][key_of(record["header"])] = record
        weights = next(iter(headers.values()))["weights_sha256"]
        known = [key for records in found.values() for key in records]
        texts = self._others(lambda shared: shared.alike(weights, list(wanted), known))
        for key, text in texts.items():
            record = _whole(text)
            if record is None or key != key_of(record["header"]):
                continue
            way = record.get("way", "")
            if way in wanted and _is_alike(record, headers[wanted[way]], way):
                found[wanted[way]][key] = record
                self._write(record["header"], text, way)
        return {task: list(records.values()) for task, records in found.items()}

    def keep(self, header: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Keep a record on disk, all or nothing, and drop its journal.

        Args:
            record: with its ``way``, see ``way_of``.

        Raises:
            EvaluationError: the file cannot be written.
        """
        content = {**record, "header": dict(header)}
        text = json.dumps(
            {"format": FORMAT, "sha256": _sha256(content), "record": content}, allow_nan=False
        )
        self._write(header, text, record["way"])
        self.journal(header).drop()

    def share(self, headers: Collection[Mapping[str, str]], ways: Collection[str]) -> None:
        """Copy records of one model, each asked in its way, from disk to the shared store."""
        if self._shared is None or not headers:
            return
        weights = next(iter(headers))["weights_sha256"]
        texts = {key_of(h): self._file(h).read_text(encoding="utf-8") for h in headers}
        try:
            self._shared.keep(weights, texts, dict(zip(texts, ways, strict=True)))
        except MergeopsError as error:
            log.warning("scores are kept on this machine only: %s", error)

    def journal(self, header: Mapping[str, str]) -> Journal:
        """Where the answers of a task that is being asked are kept."""
        return Journal(self._file(header).with_suffix(".journal"))

    def _others(self, ask: Callable[[SharedScores], Mapping[str, str]]) -> Mapping[str, str]:
        """What the shared store answers; nothing where there is none, or it is away."""
        if self._shared is None:
            return {}
        try:
            return ask(self._shared)
        except MergeopsError as error:
            log.warning("scores of other machines cannot be looked up: %s", error)
            return {}

    def _write(self, header: Mapping[str, str], text: str, way: str) -> None:
        """The record, and then an empty file whose name says in which way it was asked."""
        file = self._file(header)
        _write(file, text)
        if way:
            _write(file.with_name(f"{file.stem}.{way[:16]}.way"), "")

    def _file(self, header: Mapping[str, str]) -> Path:
        folder = self._work_dir / "scores" / header["weights_sha256"][:16]
        return folder / f"{key_of(header)[:16]}.{header['part']}.json"


@dataclass(frozen=True)
class Journal:
    """The answers to the first questions of a task, in pieces that were asked at once."""

    path: Path

    def read(self, of: str = "") -> list[list[Any]]:
        """The pieces so far; none where the file is not whole, or of other items.

        Args:
            of: digest of the items that are asked; empty where they are all of the task's.
        """
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            whole = stored["sha256"] == _sha256(stored["pieces"]) and stored.get("of", "") == of
        except (OSError, ValueError, TypeError, KeyError):
            return []
        return list(stored["pieces"]) if whole else []

    def write(self, pieces: list[list[Any]], of: str = "") -> None:
        """Keep these, all or nothing.

        Args:
            of: as for ``read``.

        Raises:
            EvaluationError: the file cannot be written.
        """
        _write(self.path, json.dumps({"sha256": _sha256(pieces), "pieces": pieces, "of": of}))

    def drop(self) -> None:
        """Forget all."""
        self.path.unlink(missing_ok=True)


def key_of(header: Mapping[str, str]) -> str:
    """sha256 hex of what a record is about."""
    return _sha256(dict(header))


def way_of(header: Mapping[str, str], way: str) -> str:
    """sha256 hex of how a model is asked the items of a task, whichever items they are.

    Args:
        way: of the task.
    """
    return _sha256({**_without_items(header), "way": way})


def read(path: Path, header: Mapping[str, str]) -> dict[str, Any] | None:
    """The record in a file, or None if it is not there, not whole, or not what the header says."""
    return _about(_read(path), header)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _whole(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _parse(text: str, header: Mapping[str, str]) -> dict[str, Any] | None:
    return _about(_whole(text), header)


def _is_alike(record: Mapping[str, Any], header: Mapping[str, str], way: str) -> bool:
    same = _without_items(record["header"]) == _without_items(header)
    return same and record.get("way") == way


def _without_items(header: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in header.items() if key not in ("part", "digest")}


def _about(record: dict[str, Any] | None, header: Mapping[str, str]) -> dict[str, Any] | None:
    return record if record is not None and record["header"] == dict(header) else None


def _whole(text: str) -> dict[str, Any] | None:
    """The record in a text; None where it is damaged or of another format."""
    try:
        stored = json.loads(text)
        record: dict[str, Any] = stored["record"]
        whole = stored["format"] == FORMAT and stored["sha256"] == _sha256(record)
        return record if whole and isinstance(record["header"], dict) else None
    except (ValueError, TypeError, KeyError):
        return None


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
