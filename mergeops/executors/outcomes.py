"""The results of units that are all known before, and what is shown of the workers meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mergeops.executors.executor import Executor
from mergeops.executors.units import Advanced, Event, Failed, Finished, Lost, Started, Unit
from mergeops.progress import Progress


def results(
    executor: Executor,
    units: Sequence[Unit],
    *,
    progress: Progress | None = None,
    tell: Callable[[Event], None] = lambda event: None,
) -> Iterator[Finished]:
    """Have units done, and yield each that is, in the order in which they end.

    Args:
        executor: open, and stays open.
        units: all are submitted at once.
        progress: shows what each worker does.
        tell: told of every event.

    Raises:
        MergeopsError, UnitError: of the first unit that failed; the others are cancelled.
    """
    for unit in units:
        executor.submit(unit)
    for event in executor.events():
        if progress is not None:
            show(event, progress)
        tell(event)
        if isinstance(event, Finished):
            yield event
        elif isinstance(event, Failed):
            for unit in units:
                executor.cancel(unit.name)
            event.error.add_note(event.log)
            raise event.error


def show(event: Event, progress: Progress) -> None:
    """Show what a worker does now."""
    if isinstance(event, Started):
        progress.at_work(event.worker, str(event.unit))
    elif isinstance(event, Advanced):
        progress.at_work(event.worker, str(event.unit), event.done, event.total)
    else:
        progress.at_rest(event.worker)
    if isinstance(event, Lost):
        progress.step(f"{event.worker} is gone: {event.reason}; another takes {event.unit}")
