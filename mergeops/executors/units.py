"""Units of work, what a worker's function is given, and what is told of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops import errors
from mergeops.errors import MergeopsError
from mergeops.progress import Tick


@dataclass(frozen=True)
class Unit:
    """One piece of work that some worker does; doing it twice does no harm."""

    name: str
    """A digest of what decides the result: equal names are equal work."""
    work: str
    """``package.module:function``, which a worker imports and calls with (payload, place)."""
    payload: Mapping[str, Any]
    """JSON types."""
    label: str = ""
    """What progress and messages call it."""

    @classmethod
    def of(cls, work: str, payload: Mapping[str, Any], label: str = "") -> Unit:
        """A unit that is named by all that its function is given."""
        text = json.dumps([work, payload], sort_keys=True)
        return cls(hashlib.sha256(text.encode()).hexdigest(), work, payload, label)

    def __str__(self) -> str:
        return self.label or self.name[:12]


@dataclass
class Desk:
    """Where a unit is worked on: what its function is given beside the payload."""

    number: int
    """Of the worker, from 1."""
    tell: Tick
    """Call it with (done, total) as the work goes on."""
    memory: int | None = None
    """Bytes of memory of its own that the worker may hold; one that holds more is ended."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What functions keep open from one unit to the next; it lives as long as the worker."""


WorkFunction = Callable[[Mapping[str, Any], Desk], Any]
"""Returns JSON types."""


@dataclass(frozen=True)
class Started:
    """A worker began a unit."""

    unit: Unit
    worker: str


@dataclass(frozen=True)
class Advanced:
    """How far a unit is."""

    unit: Unit
    worker: str
    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """A unit is done."""

    unit: Unit
    worker: str
    result: Any
    """JSON types, as its function returned them."""


@dataclass(frozen=True)
class Failed:
    """A unit cannot be done: its function raised an error, or it ended several workers."""

    unit: Unit
    worker: str
    error: Exception
    """One of ``mergeops.errors`` where the function raised that, else a ``UnitError``."""
    log: str = ""
    """What was logged while it was worked on, and the traceback."""


@dataclass(frozen=True)
class Lost:
    """A worker is gone; another one takes its unit."""

    unit: Unit
    worker: str
    reason: str


Event = Started | Advanced | Finished | Failed | Lost


@dataclass(frozen=True)
class Needs:
    """What every worker has to have before it is given work."""

    files: Mapping[str, int] = field(default_factory=dict)
    """Path -> size in bytes of what units read."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Path -> sha256 of small files that must say the same, e.g. those of tasks."""
    shared: tuple[str, ...] = ()
    """Directories that units write to and the driver reads."""


class UnitError(Exception):
    """What a unit's function raised that is no error of mergeops; its text has the traceback."""


def error_of(message: Mapping[str, Any]) -> Exception:
    """The error that a worker described."""
    found = getattr(errors, message["class"], None) if message["class"] else None
    if isinstance(found, type) and issubclass(found, MergeopsError):
        error = found(message["message"], at=message["at"])
        if message["errno"] is not None:
            error.__cause__ = OSError(message["errno"], os.strerror(message["errno"]))
        return error
    return UnitError(message["message"])
