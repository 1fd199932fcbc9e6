"""Executors: units of work on processes of this machine, on Ray or on Slurm.

A unit is a function by name, with a payload of JSON types; its name is a digest of what decides
its result. Some worker does it, whole or not at all; a worker that dies loses its unit only, and
another one takes it. So a unit may run twice, also at the same time, and must do no harm by it:
its results are published by renaming, or are the same bytes in the same places.

    def score(payload, place):                     # package.scoring, known to every worker
        model = place.kept.setdefault(...)         # what stays open from unit to unit
        place.tell(done, total)                    # as often as you like
        return {"score": 0.7}                      # JSON types

    with open_executor(recipe.executor, Needs(shared=("/shared/work",))) as executor:
        executor.submit(Unit.of("package.scoring:score", {"model": "/shared/a"}, "scoring a"))
        for event in executor.events():            # until nothing submitted is left
            if isinstance(event, Finished):        # event.unit, event.result, event.worker
                executor.submit(...)               # more, as results come in
            elif isinstance(event, Failed):        # event.error: ours by class, else UnitError
                ...

``events`` also tells of ``Started``, ``Advanced`` (how far) and ``Lost`` (a worker is gone; its
unit is done again). ``executor.workers`` says how many units are worked on at a time,
``executor.cancel(unit.name)`` leaves one alone, ``results`` is the loop above for units that are
all known before, and ``close`` ends every worker. What is raised by ``open_executor``, and by
``events`` before the first unit starts, is the user's to fix: no engine at the address, other
versions, storage that is not shared.

An engine is a file that registers a ``Launcher``, which starts workers; the rest is here. Another
package adds one by an entry point in the group ``mergeops.executors``.

Stands on: checkpoint, errors, lazy_torch, progress, recipe, version.
"""

from mergeops.executors.engines import examine_executor, executor, open_executor, script_of
from mergeops.executors.executor import Executor
from mergeops.executors.launcher import Launcher
from mergeops.executors.line import Invitation
from mergeops.executors.outcomes import results, show
from mergeops.executors.units import (
    Advanced,
    Desk,
    Event,
    Failed,
    Finished,
    Lost,
    Needs,
    Started,
    Unit,
    UnitError,
)
from mergeops.executors.work_log import WorkLog
from mergeops.executors.worker import work

__all__ = [
    "Advanced",
    "Desk",
    "Event",
    "Executor",
    "Failed",
    "Finished",
    "Invitation",
    "Launcher",
    "Lost",
    "Needs",
    "Started",
    "Unit",
    "UnitError",
    "WorkLog",
    "examine_executor",
    "executor",
    "open_executor",
    "results",
    "script_of",
    "show",
    "work",
]
