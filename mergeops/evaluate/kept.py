"""Scores that were made before: on disk, and in the tracking store for other runs and machines.

One record for each model, task and part. A file is complete or absent: it is written beside its
place, synced and renamed. What is damaged, or about something else, counts as absent. While a task
is asked, its answers are kept in a journal beside the record, so a crash loses seconds. A record
also says in which way its items were asked, so that another selection of them finds it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mergeops.checkpoint import replace_with
from mergeops.errors import EvaluationError, MergeopsError

log = logging.getLogger(__name__)

FORMAT = 3
_WITH_ANSWERS = (2, 3)
"""Formats whose answers can be counted again. The second knew no weights of items."""

ScoreRecord = dict[str, Any]
"""What ``answers.score_answers`` makes of one task, with settings, version, way and header."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a record is about: one model and one part of a task."""

    weights_sha256: str
    task: str
    part: str
    digest: str
    """Of the task's settings and the items of the part."""
    model_sha256: str
    tokenizer_sha256: str
    task_way: str
    """sha256 hex of how the task asks its items, whichever items they are."""

    @property
    def header(self) -> dict[str, str]:
        """As the record has it."""
        header = dataclasses.asdict(self)
        del header["task_way"]
        return header

    @property
    def key(self) -> str:
        """sha256 hex of the header."""
        return _sha256(self.header)

    @property
    def way(self) -> str:
        """sha256 hex of how this model is asked the task's items, whichever items they are."""
        return _sha256({**_without_items(self.header), "way": self.task_way})


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

    All subjects of one call are about the same weights.

    Args:
        work_dir: records are kept below ``scores/`` in it.
        shared: asked for what is not on disk; where it fails, scoring goes on without it.
    """

    def __init__(self, work_dir: Path, shared: SharedScores | None = None) -> None:
        self._work_dir = work_dir
        self._shared = shared

    def find(self, subjects: Sequence[Subject]) -> dict[str, ScoreRecord]:
        """Task -> its record, of those tasks that have one."""
        records: dict[str, ScoreRecord] = {}
        for subject in subjects:
            record = _read(self._file(subject.header))
            if record is not None and record["header"] == subject.header:
                records[subject.task] = record
        missing = {subject.key: subject for subject in subjects if subject.task not in records}
        if not missing:
            return records
        weights = subjects[0].weights_sha256
        texts = self._ask_others(lambda shared: shared.find(weights, list(missing)))
        for key, subject in missing.items():
            record = _parse(texts.get(key, ""))
            if record is not None and record["header"] == subject.header:
                records[subject.task] = record
                self._write(record, texts[key])
        return records

    def alike(self, subjects: Sequence[Subject]) -> dict[str, list[ScoreRecord]]:
        """Task -> records of the same model on other selections of its items."""
        records: dict[str, dict[str, ScoreRecord]] = {subject.task: {} for subject in subjects}
        by_way = {subject.way: subject for subject in subjects}
        for way, subject in by_way.items():
            ending = f".{way[:16]}.way"
            for mark in sorted(self._file(subject.header).parent.glob(f"*{ending}")):
                file = mark.with_name(mark.name.removesuffix(ending) + ".json")
                record = _read(file, _WITH_ANSWERS)
                if record is not None and _is_alike(record, subject):
                    records[subject.task][_sha256(record["header"])] = record
        weights = subjects[0].weights_sha256
        known = [key for by_key in records.values() for key in by_key]
        texts = self._ask_others(lambda shared: shared.alike(weights, list(by_way), known))
        for key, text in texts.items():
            record = _parse(text, _WITH_ANSWERS)
            if record is None or key != _sha256(record["header"]):
                continue
            same_way = by_way.get(record.get("way", ""))
            if same_way is not None and _is_alike(record, same_way):
                records[same_way.task][key] = record
                self._write(record, text)
        return {task: list(by_key.values()) for task, by_key in records.items()}

    def keep(self, subject: Subject, record: Mapping[str, Any]) -> None:
        """Keep a record on disk, all or nothing, and drop its journal.

        Raises:
            EvaluationError: the file cannot be written.
        """
        content = {**record, "way": subject.way, "header": subject.header}
        stored = {"format": FORMAT, "sha256": _sha256(content), "record": content}
        self._write(content, json.dumps(stored, allow_nan=False))
        self.journal(subject).drop()

    def share(self, subjects: Sequence[Subject]) -> None:
        """Copy the records of subjects from disk to the shared store."""
        if self._shared is None or not subjects:
            return
        texts = {s.key: self._file(s.header).read_text(encoding="utf-8") for s in subjects}
        ways = {subject.key: subject.way for subject in subjects}
        try:
            self._shared.keep(subjects[0].weights_sha256, texts, ways)
        except MergeopsError as error:
            log.warning("scores are kept on this machine only: %s", error)

    def journal(self, subject: Subject) -> AnswerJournal:
        """Where the answers of a task that is being asked are kept."""
        return AnswerJournal(self._file(subject.header).with_suffix(".journal"))

    def _ask_others(
        self, question: Callable[[SharedScores], Mapping[str, str]]
    ) -> Mapping[str, str]:
        """What the shared store answers; nothing where there is none, or it is away."""
        if self._shared is None:
            return {}
        try:
            return question(self._shared)
        except MergeopsError as error:
            log.warning("scores of other machines cannot be looked up: %s", error)
            return {}

    def _write(self, record: Mapping[str, Any], text: str) -> None:
        """The record, and then an empty file whose name says in which way it was asked."""
        file = self._file(record["header"])
        _write(file, text)
        if way := record.get("way", ""):
            _write(file.with_name(f"{file.stem}.{way[:16]}.way"), "")

    def _file(self, header: Mapping[str, str]) -> Path:
        folder = self._work_dir / "scores" / header["weights_sha256"][:16]
        return folder / f"{_sha256(dict(header))[:16]}.{header['part']}.json"


@dataclass(frozen=True)
class AnswerJournal:
    """The answers to the first questions of a task, in pieces that were asked at once."""

    path: Path

    def read(self, of: str = "") -> list[list[Any]]:
        """The pieces so far; none where the file is not whole, or of other items.

        Args:
            of: digest of the items that are asked; empty where they are all of the task's.
        """
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            is_whole = stored["sha256"] == _sha256(stored["pieces"])
            return list(stored["pieces"]) if is_whole and stored.get("of", "") == of else []
        except (OSError, ValueError, TypeError, KeyError):
            return []

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


def _read(path: Path, formats: Collection[int] = (FORMAT,)) -> ScoreRecord | None:
    try:
        return _parse(path.read_text(encoding="utf-8"), formats)
    except (OSError, ValueError):
        return None


def _parse(text: str, formats: Collection[int] = (FORMAT,)) -> ScoreRecord | None:
    """The record in a text; None where it is damaged or of a format that is not wanted."""
    try:
        stored = json.loads(text)
        record: ScoreRecord = stored["record"]
        is_whole = stored["format"] in formats and stored["sha256"] == _sha256(record)
        return record if is_whole and isinstance(record["header"], dict) else None
    except (ValueError, TypeError, KeyError):
        return None


def _is_alike(record: ScoreRecord, subject: Subject) -> bool:
    """Whether a record holds answers of the same model to the same task, asked in the same way."""
    is_same = _without_items(record["header"]) == _without_items(subject.header)
    return is_same and record.get("way") == subject.way


def _without_items(header: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in header.items() if key not in ("part", "digest")}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_with(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"scores cannot be kept in {path}: {error.strerror}") from error


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
