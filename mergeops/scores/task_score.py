"""What a model got on the items of one task, and what kind of number its score is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MEAN, UNITS, CORPUS, UNKNOWN = "mean", "units", "corpus", "unknown"
"""What a score is of its items: their mean; the ratio of two sums over them (nats by words); a
number that only all of them together have (BLEU); or not known, as an older mergeops logged it."""


@dataclass(frozen=True)
class ItemResult:
    """One item's result under a task's chosen metric."""

    doc_id: int
    doc_hash: str
    prompt_hash: str
    target_hash: str
    value: float
    """What the item adds: 0.0 or 1.0 for acc and exact_match, its nats for perplexities, its bits
    for bits_per_byte, and 0.0 where only all items together have a value."""
    cluster: str = ""
    """What the item shares with others of its task (a passage, a template), where
    ``evaluate.clusters`` names it; items of one cluster are not independent."""
    weight: float = 1.0
    """Its units, which a score of kind ``units`` divides by: words or bytes, 0 of an empty text."""


@dataclass(frozen=True)
class TaskScore:
    """One task's score on one part of its items."""

    task: str
    metric: str
    """lm-eval's metric name without filter, e.g. ``acc``."""
    value: float
    """As lm-eval aggregates it over these items."""
    stderr: float | None
    """Standard error as lm-eval gives it; None where it has none."""
    items: tuple[ItemResult, ...]
    """In doc_id order."""
    version: str
    """The task's version."""
    digest: str
    """sha256 of task settings and item hashes: equal digests mean the same questions."""
    higher_is_better: bool = True
    kind: str = MEAN
    """What the value is of the items: ``mean``, ``units``, ``corpus`` or ``unknown``."""
    by_log: bool = False
    """Whether models are compared by the value's logarithm: a perplexity by its nats a unit."""
    replicates: tuple[float, ...] = ()
    """Of kind ``corpus``: the value on items that were drawn again, the same draws for all models
    that answered the same items."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """How the items were asked and counted, by what it is called in messages; scores that differ in
    it are not compared."""
    chosen: str = ""
    """``METRIC,FILTER`` where they are others than the task is scored by without a choice: numbers
    on the same questions that do not stand in one column."""

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.items)


@dataclass(frozen=True)
class GroupRule:
    """A group of tasks that lm-eval gives a number of its own."""

    tasks: tuple[str, ...]
    by_size: bool
    """Whether a task counts as often as it has items, or once."""
