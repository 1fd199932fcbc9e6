"""Runs that ended become candidates, or are told why not."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from mergeops import adoption
from mergeops.errors import SourceError
from mergeops.store import Tracking
from mergeops.watching.poll import EndedRun
from mergeops.watching.state import UNUSABLE, WAITING, SeenRun


def adopt_ended(
    tracking: Tracking,
    experiment: str,
    ended: Sequence[EndedRun],
    number: int,
    path_map: Mapping[str, str],
) -> list[SeenRun]:
    """Adopt runs of an experiment; each is a candidate that waits, or unusable.

    Args:
        ended: what is adopted, by one request.
        number: of the round.
        path_map: moved storage.

    Raises:
        TrackingError: MLflow cannot be asked.
    """
    ids = ", ".join(f"'{run.run_id}'" for run in ended)
    rows: dict[str, dict[str, Any]] = {}
    problem = ""
    try:
        adopted = adoption.adopt(
            experiment,
            filter_string=f"attributes.run_id IN ({ids})",
            path_map=path_map,
            tracking_uri=tracking.uri,
        )
        rows = {row["run_id"]: row for row in adopted.rows()}
    except SourceError as error:
        # None of them left anything.
        problem = str(error)
    return [_seen(run, rows.get(run.run_id), problem, number) for run in ended]


def _seen(run: EndedRun, row: dict[str, Any] | None, problem: str, number: int) -> SeenRun:
    ended = datetime.datetime.fromtimestamp(run.ended_ms / 1000, datetime.UTC)
    seen = SeenRun(
        run.run_id,
        run.name,
        run.experiment,
        run.status,
        UNUSABLE,
        at=ended.isoformat(timespec="seconds"),
        round=number,
    )
    if row is None or row["problem"]:
        why = row["problem"] if row is not None else problem or "it left no checkpoint"
        return dataclasses.replace(seen, note=why[:500])
    if row["not_finite"]:
        why = f"diverged: {', '.join(row['not_finite'])} is no number"
        return dataclasses.replace(seen, note=why)
    return dataclasses.replace(
        seen, outcome=WAITING, uri=row["uri"], base=row["base"], note=f"{row['kind']} weights"
    )
