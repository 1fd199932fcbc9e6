"""Scores: what a model got on which items, with errors, and what it takes to compare two of them.

An ``ItemResult`` keeps the hashes of document, prompt and target, since two models may be paired
only on items where all three agree.

Stands on: errors.
"""

from mergeops.scores.intervals import Estimate, estimate, pooled_score, task_estimate
from mergeops.scores.max_t import Simultaneous, simultaneous_estimate
from mergeops.scores.paired import BOOTSTRAP, Comparison, compare
from mergeops.scores.pooling import pooled_value, pooled_words
from mergeops.scores.scores import PARTS, Scores, merit
from mergeops.scores.task_score import (
    CORPUS,
    MEAN,
    UNITS,
    UNKNOWN,
    GroupRule,
    ItemResult,
    TaskScore,
)

__all__ = [
    "BOOTSTRAP",
    "CORPUS",
    "MEAN",
    "PARTS",
    "UNITS",
    "UNKNOWN",
    "Comparison",
    "Estimate",
    "GroupRule",
    "ItemResult",
    "Scores",
    "Simultaneous",
    "TaskScore",
    "compare",
    "estimate",
    "merit",
    "pooled_score",
    "pooled_value",
    "pooled_words",
    "simultaneous_estimate",
    "task_estimate",
]
