"""Right answers that lm-eval reads as something else than they say, found before scoring.

Where a task has choices, a template that renders digits is the number of a choice to lm-eval, and a
column that holds the same digits as text is a choice's own text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


def warn_of_golds(name: str, task: Any, docs: Sequence[Any]) -> None:
    """Warn once of each kind of right answer that is none of the choices, or another than it says.

    Args:
        name: of the task.
        task: lm-eval's.
        docs: its items.
    """
    if task.get_config("doc_to_choice") is None or getattr(task, "multiple_input", False):
        return
    other: list[tuple[int, str, str]] = []
    missing: list[tuple[int, Any, int]] = []
    for i, doc in enumerate(docs):
        try:
            choices, golds = task.doc_to_choice(doc), task.doc_to_target(doc)
        except Exception:  # a prompt that cannot be made is an error when it is asked
            return
        for gold in golds if isinstance(golds, list) else [golds]:
            text = str(gold)
            if isinstance(gold, str):
                is_there = gold in choices
            else:
                is_there = isinstance(gold, int) and 0 <= gold < len(choices)
            if not is_there:
                missing.append((i, gold, len(choices)))
            elif isinstance(gold, int) and text in choices and choices[gold] != text:
                other.append((i, text, choices[gold]))
    if other and not _is_number_in_data(task, docs[other[0][0]]):
        i, said, taken = other[0]
        log.warning(
            "task %s: doc_to_target renders digits, which lm-eval takes for the number of a "
            "choice, on %d of %d items for another than the one that reads so: item %d says %r and "
            "counts %r as right; name the column itself where its text is meant",
            name,
            len(other),
            len(docs),
            i,
            said,
            taken,
        )
    if missing:
        i, gold, count = missing[0]
        log.warning(
            "task %s: the right answer of %d of %d items is none of the choices, so no model can "
            "be right: item %d says %r and has %d choices; a column of digits as text is no number "
            "of a choice, '{{column}}' is",
            name,
            len(missing),
            len(docs),
            i,
            gold,
            count,
        )


def _is_number_in_data(task: Any, doc: Any) -> bool:
    """Whether the right answer is a number in the data, not digits that a template renders."""
    target = task.get_config("doc_to_target")
    if callable(target) or isinstance(target, int):
        return True
    return isinstance(target, str) and isinstance(doc.get(target), int)
