"""A worker as its driver sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mergeops.executors.line import Line
from mergeops.executors.units import Unit


@dataclass(eq=False)
class Hired:
    """A worker that was let in."""

    number: int
    line: Line
    host: str
    is_ready: bool = False
    is_leaving: bool = False
    """Whether it takes no more units."""
    unit: Unit | None = None
    heard: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"worker {self.number} on {self.host}"
