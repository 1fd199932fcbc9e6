"""What a command that only reads answered, kept while the files that it read are as they were.

Importing MLflow's client takes longer than all else that such a command does. An answer holds for
one program, and for one state of an sqlite store and its artifacts, which their files tell without
MLflow. Where anything differs, or files do not say all, MLflow is asked again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mergeops.checkpoint import keep_text, older_than
from mergeops.errors import ConfigError
from mergeops.kernels import user_cache
from mergeops.recipe import Recipe
from mergeops.schema import build
from mergeops.store import look_at_store
from mergeops.tracking.finished import Beginning

MOST = 100
"""Answers kept, the newest."""

Answer = TypeVar("Answer")


def kept_answer(
    kind: type[Answer],
    recipe: Recipe,
    words: Sequence[Any],
    experiments: Sequence[str],
    ask: Callable[[], Answer],
) -> Answer:
    """What ``ask`` returns, or what it returned when it was asked the same last.

    Args:
        kind: a dataclass of JSON types and of such dataclasses.
        recipe: says which store is read.
        words: what is asked, besides the recipe; JSON types.
        experiments: whose artifacts ``ask`` reads.
        ask: reads MLflow and nothing else.
    """
    beginning = Beginning(recipe)
    state = look_at_store(recipe.tracking, experiments)
    if beginning.key is None or state is None:
        return ask()
    key = hashlib.sha256(json.dumps([beginning.key, words]).encode()).hexdigest()
    file = user_cache("answers") / f"{key[:32]}.json"
    known = _read(kind, file, state)
    if known is not None:
        return known
    answer = ask()
    # Opening a store may have written to it; what was written just before may share its time.
    is_still = older_than(state, beginning.began_ns)
    if is_still and look_at_store(recipe.tracking, experiments) == state:
        _keep(kind, file, state, answer)
    return answer


def _read(kind: type[Answer], file: Path, state: dict[str, list[int]]) -> Answer | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["state"] != state:
            return None
        answer: Answer = build(kind, kept["answer"], "answer.")
        return answer
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
        return None


def _keep(kind: type[Answer], file: Path, state: dict[str, list[int]], answer: Any) -> None:
    with contextlib.suppress(OSError, ConfigError):
        plain = json.loads(json.dumps(dataclasses.asdict(answer)))
        # A number that is not finite, for one, does not come back.
        if build(kind, plain, "answer.") != answer:
            return
        keep_text(file, json.dumps({"state": state, "answer": plain}))
        kept = sorted(file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        for old in kept[:-MOST]:
            old.unlink(missing_ok=True)
