"""A job: a command of mergeops that somebody asked for, named by what decides what it does."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError

QUEUED, RUNNING, CANCELLING = "queued", "running", "cancelling"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
STATES = (QUEUED, RUNNING, CANCELLING, SUCCEEDED, FAILED, CANCELLED)
ENDED = (SUCCEEDED, FAILED, CANCELLED)


class UnknownJobError(ConfigError):
    """No job, or no one job, is called so."""


class JobStateError(ConfigError):
    """A job is in a state in which that cannot be done to it."""


@dataclass(frozen=True)
class JobRequest:
    """What is to be done, checked against what is allowed."""

    command: str
    words: tuple[str, ...]
    """Its arguments, as after ``mergeops COMMAND``."""
    tags: tuple[str, ...] = ()
    """What a worker must have to take it."""
    priority: int = 0
    files: Mapping[str, str] | None = None
    """Files and directories that the words name -> sha256: another content is another job."""

    @property
    def id(self) -> str:
        """The same for the same work."""
        decides = [self.command, list(self.words), dict(self.files or {})]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job as the queue knows it."""

    id: str
    command: str
    words: tuple[str, ...]
    state: str
    """One of ``STATES``."""
    tags: tuple[str, ...]
    priority: int
    submitted_by: str
    submitted_at: datetime.datetime
    attempt: int
    """How often it was begun."""
    worker: str | None = None
    device: str | None = None
    started_at: datetime.datetime | None = None
    ended_at: datetime.datetime | None = None
    spent_s: float = 0.0
    """Seconds of all attempts that ended."""
    exit_code: int | None = None
    error: str | None = None
    """One line, of an attempt that failed."""
    progress: Mapping[str, Any] | None = None
    """What is worked on: task, done, total, unit, seconds; or step."""
    result: Any = None
    """What the command gave as JSON."""
    was_there: bool = False
    """Of a submission: whether the very job was known before."""

    @property
    def title(self) -> str:
        """As it is typed."""
        return " ".join([self.command, *self.words])

    @property
    def share(self) -> float | None:
        """How much of the task at hand is done, 0 to 1; None where that is not known."""
        if not self.progress or not self.progress.get("total"):
            return None
        return min(1.0, float(self.progress["done"]) / float(self.progress["total"]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        raw = asdict(self)
        for key in ("submitted_at", "started_at", "ended_at"):
            raw[key] = raw[key].isoformat() if raw[key] else None
        return raw | {"words": list(self.words), "tags": list(self.tags)}


@dataclass(frozen=True)
class LogLine:
    """One line that a job wrote."""

    n: int
    """Rises; a reader goes on after the last that it has."""
    attempt: int
    at: datetime.datetime
    line: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"at": self.at.isoformat()}


@dataclass(frozen=True)
class WorkerState:
    """A worker that is alive, or was a moment ago."""

    id: int
    name: str
    """HOST:PROCESS."""
    device: str
    tags: tuple[str, ...]
    started_at: datetime.datetime
    silent_s: float
    """Since its last heartbeat."""
    job: str | None
    """What it works on."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"started_at": self.started_at.isoformat(), "tags": list(self.tags)}


def queue_of(tags: tuple[str, ...]) -> str:
    """The queue of jobs that need just these tags."""
    return "+".join(sorted(set(tags))) or "any"


def queues_of(tags: tuple[str, ...]) -> list[str]:
    """The queues that a worker with these tags serves: all that need no other."""
    subsets: list[tuple[str, ...]] = [()]
    for tag in sorted(set(tags)):
        subsets += [(*subset, tag) for subset in subsets]
    return [queue_of(subset) for subset in subsets]


def digest_of(path: Path) -> str:
    """What a file or a directory of configs holds."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*.y*ml")) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{file.relative_to(path)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
