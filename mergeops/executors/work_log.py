"""Who did which unit when, and what units said that failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mergeops.errors import MergeopsError
from mergeops.executors.units import Event, Failed, Finished, Started


class WorkLog:
    """Listens to the events of an executor."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        """JSON types: worker, unit, began (epoch) and seconds, as they end."""
        self.failed: dict[str, str] = {}
        """The first characters of a unit's name -> its log."""
        self._began: dict[str, float] = {}

    def note(self, event: Event) -> None:
        """Take an event as it is told."""
        name = event.unit.name
        if isinstance(event, Started):
            self._began[name] = time.time()
        elif isinstance(event, Finished | Failed):
            began = self._began[name]
            span = {"began": round(began, 3), "seconds": round(time.time() - began, 3)}
            self.spans.append({"worker": event.worker, "unit": str(event.unit), **span})
        if isinstance(event, Failed):
            self.failed[name[:12]] = event.log

    @contextmanager
    def told_to(
        self, write: Callable[[list[dict[str, Any]], dict[str, str]], None]
    ) -> Iterator[None]:
        """Have ``spans`` and ``failed`` written when the block ends, also by an error."""
        try:
            yield
        except BaseException:
            # What stopped the work matters more than a server that is away.
            with suppress(MergeopsError):
                write(self.spans, self.failed)
            raise
        write(self.spans, self.failed)
