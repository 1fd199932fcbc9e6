"""What the items of loaded tasks say beside the questions: their clusters, and which they are.

A cluster is named by a field of the item (``evaluate.clusters``); the split keeps it whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.split import item_digest
from mergeops.evaluate.tasks import TaskSet
from mergeops.scores import Scores

SKETCH_ITEMS = 64


def check_directions(tasks: TaskSet) -> None:
    """Refuse tasks that no single number can choose by, before hours of merging and scoring.

    Raises:
        EvaluationError: of some higher is better, of others lower.
    """
    up = [name for name, task in tasks.tasks.items() if task.higher_is_better]
    down = [name for name in tasks.tasks if name not in up]
    if up and down:
        raise EvaluationError(
            f"of {', '.join(up)} higher is better, of {', '.join(down)} lower: no single number "
            "can choose by both; name tasks of one kind in evaluate.tasks"
        )


def check_clusters(tasks: TaskSet) -> None:
    """Refuse ``evaluate.clusters`` that names no task or no field, before a model is loaded.

    Raises:
        EvaluationError: says which are there.
    """
    for name, field in tasks.spec.clusters.items():
        where = f"evaluate.clusters.{name}"
        if name not in tasks.tasks:
            raise EvaluationError(
                f"{where}: task {name!r} is not scored; the tasks are: {', '.join(tasks.tasks)}"
            )
        docs = tasks.tasks[name].docs
        # What one line of a JSONL file lacks, the datasets library fills with None.
        without = [i for i, doc in enumerate(docs) if doc.get(field) is None]
        if without:
            fields = [str(key) for key, value in docs[without[0]].items() if value is not None]
            raise EvaluationError(
                f"{where} is {field!r}, which {len(without)} of {len(docs)} items lack, item "
                f"{without[0]} first; its fields: {', '.join(fields)}"
            )


def with_clusters(scores: Scores, tasks: TaskSet) -> Scores:
    """The same scores, each item with the cluster that ``evaluate.clusters`` gives it."""
    clustered = dict(scores.tasks)
    for name, field in tasks.spec.clusters.items():
        if name in clustered:
            docs = tasks.tasks[name].docs
            items = tuple(
                dataclasses.replace(item, cluster=_label(docs[item.doc_id][field]))
                for item in clustered[name].items
            )
            clustered[name] = dataclasses.replace(clustered[name], items=items)
    return dataclasses.replace(scores, tasks=clustered)


def part_digests(tasks: TaskSet, part: str) -> dict[str, str]:
    """Task -> digest of the items in a part: their content alone, so that no setting of the scoring
    (batch size, dtype, prompt) makes the same items look like new ones."""
    digests = {}
    for name, task in tasks.tasks.items():
        items = sorted(item_digest(task.docs[i]) for i in task.ids[part])
        digests[name] = hashlib.sha256("".join([name, *items]).encode()).hexdigest()[:16]
    return digests


def part_sketches(tasks: TaskSet, part: str) -> dict[str, str]:
    """Task -> the smallest ``SKETCH_ITEMS`` of its items' digests in a part, 12 hex digits each.

    A bottom-k sketch (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900): two parts that have
    a share J of their items in common have a digest in common but for a chance of about
    (1 - J) ** 64. The task's name and the split's salt are no part of it.
    """
    sketches = {}
    for name, task in tasks.tasks.items():
        items = {item_digest(task.docs[i])[:12] for i in task.ids[part]}
        sketches[name] = " ".join(sorted(items)[:SKETCH_ITEMS])
    return sketches


def asked_digest(tasks: TaskSet, part: str) -> str:
    """Of everything that is asked in a part: items, prompts, metrics and clusters."""
    asked = {
        name: [task.asked[part], task.metric, task.filter] for name, task in tasks.tasks.items()
    }
    text = json.dumps([asked, dict(tasks.spec.clusters)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def part_sizes(tasks: TaskSet, part: str) -> dict[str, int]:
    """Task -> number of items in a part."""
    return {name: len(task.ids[part]) for name, task in tasks.tasks.items()}


def _label(value: Any) -> str:
    text = value if isinstance(value, str) else item_digest(value)
    # Passages may be long, and go into a CSV of every item.
    return text if len(text) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:16]
