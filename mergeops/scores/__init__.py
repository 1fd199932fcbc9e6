"""Scores: what a model got on which items, with errors, and what it takes to compare two of them.

An ``ItemResult`` keeps the hashes of document, prompt and target, since two models may be paired
only on items where all three agree.

Stands on: errors.
"""

from mergeops.scores.intervals import Estimate, estimate, mean_interval, task_estimate
from mergeops.scores.max_t import Simultaneous, simultaneous_estimate
from mergeops.scores.paired import Comparison, compare
from mergeops.scores.scores import PARTS, ItemResult, Scores, TaskScore, merit

__all__ = [
    "PARTS",
    "Comparison",
    "Estimate",
    "ItemResult",
    "Scores",
    "Simultaneous",
    "TaskScore",
    "compare",
    "estimate",
    "mean_interval",
    "merit",
    "simultaneous_estimate",
    "task_estimate",
]
