"""What was measured of a plan's sources, for methods that need it."""

from __future__ import annotations

from pathlib import Path

from mergeops.activations import OpenMeasured
from mergeops.engine.jobs import Job, Work
from mergeops.methods import LayerActivations
from mergeops.planning import Plan, disk_name


class MeasuredInputs:
    """The measured activations of all sources, read where they lie.

    Args:
        plan: names them, or none.
        work: the plan's.

    Raises:
        SourceError: they are gone, or others.
    """

    def __init__(self, plan: Plan, work: Work) -> None:
        self._work = work
        self._opened = {
            source.name: OpenMeasured(Path(kept.path), kept.sha256)
            for source, kept in zip(plan.sources, plan.activations, strict=False)
        }

    def of(self, job: Job) -> list[LayerActivations] | None:
        """What was measured of each source's tensor; None where that of one is lacking."""
        if not self._opened:
            return None
        found = []
        for part in job.parts[job.has_base :]:
            planned = self._work.inputs[part.reader]
            layer = self._opened[planned.name].layer(disk_name(planned, part.tensor) or "")
            if layer is None or not layer.fits(job.task.shape):
                return None
            found.append(layer)
        return found
