"""From a plan to a checkpoint: streaming, resumable, on any device.

Stands on: activations, adapters, architectures, checkpoint, errors, executors, kernels,
lazy_torch, methods, planning, progress, recipe, recover, redact, sources, version.
"""

from mergeops.engine.composed_models import MADE_INPUTS, assemble, made_input
from mergeops.engine.destination import check_output
from mergeops.engine.devices import choose_devices
from mergeops.engine.execute import CARD, merge, merge_and_pin
from mergeops.engine.jobs import Job, work_of
from mergeops.engine.pace import MERGING, PACE, SCORING, note_pace, read_pace
from mergeops.engine.pouring import Take, pour
from mergeops.engine.readers import OpenInputs, open_input
from mergeops.engine.records import default_card, manifest_content
from mergeops.engine.spread import files_of, merge_on
from mergeops.engine.work_plan import WorkPlan, plan_work
from mergeops.engine.working_directory import DOOMED, LOCK

__all__ = [
    "CARD",
    "DOOMED",
    "LOCK",
    "MADE_INPUTS",
    "MERGING",
    "PACE",
    "SCORING",
    "Job",
    "OpenInputs",
    "Take",
    "WorkPlan",
    "assemble",
    "check_output",
    "choose_devices",
    "default_card",
    "files_of",
    "made_input",
    "manifest_content",
    "merge",
    "merge_and_pin",
    "merge_on",
    "note_pace",
    "open_input",
    "plan_work",
    "pour",
    "read_pace",
    "work_of",
]
