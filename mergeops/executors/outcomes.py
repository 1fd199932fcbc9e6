"""The results of units that are all known before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mergeops.executors.executor import Executor
from mergeops.executors.units import Event, Failed, Finished, Unit


def results(
    executor: Executor,
    units: Sequence[Unit],
    *,
    tell: Callable[[Event], None] = lambda event: None,
) -> Iterator[Finished]:
    """Have units done, and yield each that is, in the order in which they end.

    Args:
        executor: open, and stays open.
        units: all are submitted at once.
        tell: told of every other event.

    Raises:
        MergeopsError, UnitError: of the first unit that failed; the others are cancelled.
    """
    for unit in units:
        executor.submit(unit)
    for event in executor.events():
        if isinstance(event, Finished):
            yield event
        elif isinstance(event, Failed):
            for unit in units:
                executor.cancel(unit.name)
            event.error.add_note(event.log)
            raise event.error
        else:
            tell(event)
