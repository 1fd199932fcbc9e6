"""From a plan to a checkpoint: streaming, resumable, on any device.

Stands on: adapters, checkpoint, errors, kernels, lazy_torch, methods, planning, progress, recover,
redact, sources, version.
"""

from mergeops.engine.destination import check_output
from mergeops.engine.execute import merge, merge_and_pin
from mergeops.engine.pace import MERGING, SCORING, note_pace, read_pace
from mergeops.engine.readers import open_input
from mergeops.engine.working_directory import DOOMED, LOCK

__all__ = [
    "DOOMED",
    "LOCK",
    "MERGING",
    "SCORING",
    "check_output",
    "merge",
    "merge_and_pin",
    "note_pace",
    "open_input",
    "read_pace",
]
