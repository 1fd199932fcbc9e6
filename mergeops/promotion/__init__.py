"""Candidate, confirm part, gate, champion, and the audit of all of it.

Stands on: checkpoint, errors, evaluate, pipeline, planning, progress, recipe, redact, schema,
scores, sources, store, tools, tracking, version.
"""

from mergeops.promotion.approval import approve, reject
from mergeops.promotion.audit import Change
from mergeops.promotion.champion import rollback
from mergeops.promotion.confirm import promote
from mergeops.promotion.controls import (
    Controls,
    finding_of,
    gains_over,
    run_controls,
    with_sources,
    without_source,
)
from mergeops.promotion.gate import INCONCLUSIVE
from mergeops.promotion.gate_checks import BETTER, FLOOR, RISE, GateCheck
from mergeops.promotion.history import History, read_history
from mergeops.promotion.hooks import configured, registry
from mergeops.promotion.outcome import Outcome
from mergeops.promotion.waiting import WaitingProposal, read_trial_file, waiting_proposals

__all__ = [
    "BETTER",
    "FLOOR",
    "INCONCLUSIVE",
    "RISE",
    "Change",
    "Controls",
    "GateCheck",
    "History",
    "Outcome",
    "WaitingProposal",
    "approve",
    "configured",
    "finding_of",
    "gains_over",
    "promote",
    "read_history",
    "read_trial_file",
    "registry",
    "reject",
    "rollback",
    "run_controls",
    "waiting_proposals",
    "with_sources",
    "without_source",
]
