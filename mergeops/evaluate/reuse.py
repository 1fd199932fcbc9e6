"""What is known already of a task's items, from records of other selections of them.

An item is known where the same weights were asked it in the same way: document, target and every
choice of the prompt must have the same hashes. What is taken over are the model's answers. All that
is counted from them (filters, metrics, errors) is counted anew over all items, so it makes no
difference to any metric which of them were asked before. Answers that are drawn at random depend on
what was asked before them, so a task that draws is always asked as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.evaluate.answers import item_hashes
from mergeops.evaluate.tasks import LoadedTask


@dataclass(frozen=True)
class Known:
    """Answers that need not be asked for."""

    answers: Mapping[int, list[Any]]
    """Position among the task's instances -> the answers to it."""
    items: int
    """How many items they belong to."""
    settings: tuple[Mapping[str, str], ...]
    """How they were asked, once for each way."""
    rest: str
    """Digest of the items that are left to ask; empty where nothing is known."""


NOTHING = Known({}, 0, (), "")


def known_answers(
    loaded: LoadedTask, instances: Sequence[Any], records: Iterable[Mapping[str, Any]]
) -> Known:
    """The answers to ``instances`` that records of the same weights, asked in the same way, hold.

    Args:
        records: as ``answers.score_answers`` makes them, with their ``settings``.
    """
    recorded: dict[tuple[str, ...], tuple[list[Any], Mapping[str, str]]] = {}
    for record in records:
        for item in record["items"]:
            recorded.setdefault(_key(item), (item["answers"], record["settings"]))
    if not recorded or any(map(_is_drawn, instances)):
        return NOTHING
    positions: dict[int, list[int]] = defaultdict(list)
    for i, instance in enumerate(instances):
        positions[instance.doc_id].append(i)
    answers: dict[int, list[Any]] = {}
    settings: list[Mapping[str, str]] = []
    rest: list[int] = []
    for doc_id, own in positions.items():
        # In the order in which an item's answers are kept.
        own.sort(key=lambda i: instances[i].idx)
        hashes = item_hashes(loaded.task, loaded.docs[doc_id], [instances[i] for i in own])
        own_answers, own_settings = recorded.get(_key(hashes), ([], {}))
        if len(own_answers) != len(own):
            rest.append(doc_id)
            continue
        answers.update(zip(own, own_answers, strict=True))
        if own_settings not in settings:
            settings.append(own_settings)
    if not answers:
        return NOTHING
    rest_digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    return Known(answers, len(positions) - len(rest), tuple(settings), rest_digest)


def joined(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """How all of a task's items were asked; a value that differs between them is said in full."""
    values: dict[str, dict[str, None]] = defaultdict(dict)  # as ordered sets
    for way in settings:
        for key, value in way.items():
            values[key][value] = None
    return {key: " and ".join(different) for key, different in values.items()}


def _is_drawn(instance: Any) -> bool:
    options = instance.args[1] if instance.request_type == "generate_until" else {}
    return bool(options.get("do_sample")) or options.get("temperature") not in (None, 0)


def _key(hashes: Mapping[str, Any]) -> tuple[str, ...]:
    return hashes["doc_hash"], hashes["prompt_hash"], hashes["target_hash"]
