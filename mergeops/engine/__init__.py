"""From a plan to a checkpoint: streaming, resumable, on any device.

Stands on: adapters, checkpoint, errors, kernels, lazy_torch, methods, planning, progress, recover,
redact, sources, version.
"""

from mergeops.engine.destination import check_output
from mergeops.engine.execute import merge
from mergeops.engine.pace import MERGING, SCORING, note_pace, read_pace
from mergeops.engine.pouring import Take, pour
from mergeops.engine.readers import OpenInputs, open_input
from mergeops.engine.working_directory import DOOMED, LOCK

__all__ = [
    "DOOMED",
    "LOCK",
    "MERGING",
    "SCORING",
    "OpenInputs",
    "Take",
    "check_output",
    "merge",
    "note_pace",
    "open_input",
    "pour",
    "read_pace",
]
