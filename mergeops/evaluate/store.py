"""Scores on disk: one file for each model, task and part, so that nothing is scored twice.

A file is complete or absent: it is written beside its place, synced and renamed. A file that is
damaged, or about something else, counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError

FORMAT = 1


def score_file(work_dir: Path, weights_sha256: str, key: str, part: str) -> Path:
    """Where a task's scores are kept.

    Args:
        key: digest of the task's settings and items, the model's configuration and tokenizer.
    """
    return work_dir / "scores" / weights_sha256[:16] / f"{key[:16]}.{part}.json"


def read(path: Path, header: Mapping[str, str]) -> dict[str, Any] | None:
    """The record in a file, or None if it is not there, not whole, or not what the header says."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        record = stored["record"]
        whole = stored["format"] == FORMAT and stored["sha256"] == _sha256(record)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not whole or record.get("header") != dict(header):
        return None
    found: dict[str, Any] = record
    return found


def write(path: Path, header: Mapping[str, str], record: Mapping[str, Any]) -> None:
    """Keep a record, all or nothing.

    Raises:
        EvaluationError: the file cannot be written.
    """
    content = {**record, "header": dict(header)}
    text = json.dumps(
        {"format": FORMAT, "sha256": _sha256(content), "record": content}, allow_nan=False
    )
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


def _sha256(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
