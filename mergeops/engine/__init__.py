"""From a plan to a checkpoint: streaming, resumable, on any device.

Stands on: adapters, checkpoint, errors, kernels, lazy_torch, methods, planning, progress, redact,
sources, version.
"""

from mergeops.engine.destination import check_output
from mergeops.engine.execute import merge
from mergeops.engine.readers import open_input
from mergeops.engine.working_directory import DOOMED, LOCK

__all__ = [
    "DOOMED",
    "LOCK",
    "check_output",
    "merge",
    "open_input",
]
