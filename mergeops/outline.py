"""Outline: a merge as it will be, without its weights, so that others can be planned from it.

Whatever planning reads is there: headers, config, tokenizer, chat template. The weights are holes:
files of the right length that take no room.
"""

from __future__ import annotations

import os
from pathlib import Path

from mergeops.checkpoint.layout import INDEX, SINGLE
from mergeops.companions import write_companions
from mergeops.errors import MergeError
from mergeops.plan import Plan
from mergeops.records import weight_index


def write_outline(plan: Plan, place: Path) -> Path:
    """Write what a plan's result looks like into a new directory.

    Args:
        plan: of a merge that is not made yet.
        place: the directory; its parent exists.

    Returns:
        ``place``.

    Raises:
        SourceError: a small file changed after the merge was planned.
        MergeError: the directory cannot be written.
    """
    try:
        place.mkdir()
        for shard in plan.shards:
            (place / shard.name).write_bytes(shard.header)
            os.truncate(place / shard.name, shard.nbytes)
        if plan.shards[0].name != SINGLE:
            (place / INDEX).write_text(weight_index(plan), encoding="utf-8")
        write_companions(plan.companions, place, plan.save_dtype, plan.config)
    except OSError as error:
        raise MergeError(f"{place} cannot be written: {error.strerror or error}") from error
    return place
