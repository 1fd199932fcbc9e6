"""Which training runs ended since a watch looked last: asked for, not looked through."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.adoption import last_sign_ms
from mergeops.errors import TrackingError
from mergeops.store import Tracking, pages

OVERLAP_MS = 120_000
"""Clocks of trainers differ, and a run that ended earlier may be written later."""
RUNS_PER_PAGE = 1000


@dataclass(frozen=True)
class EndedRun:
    """A run that ended, or has been silent for long."""

    run_id: str
    name: str
    experiment: str
    status: str
    """FINISHED, FAILED, KILLED or RUNNING (silent)."""
    ended_ms: int


def newly_ended(
    tracking: Tracking,
    experiment: str,
    cursor_ms: int,
    seen: Mapping[str, Any],
    *,
    filter_string: str | None = None,
    silent_after_s: float = 3600.0,
    now_ms: int | None = None,
) -> tuple[list[EndedRun], int]:
    """The runs of an experiment that ended since.

    Args:
        cursor_ms: the latest end that was seen; 0 before the first look.
        seen: ids of runs that were seen.
        filter_string: MLflow's filter, which runs must match, too.
        silent_after_s: a RUNNING run is taken for ended when it logged nothing for so long.
        now_ms: what time it is, for tests.

    Returns:
        The runs, oldest end first, and the new cursor.

    Raises:
        TrackingError: there is no such experiment, or MLflow cannot be asked.
    """
    found = tracking.client.get_experiment_by_name(experiment)
    if found is None:
        raise TrackingError(f"there is no experiment {experiment!r} at {tracking.shown_uri}")
    now_ms = now_ms or int(time.time() * 1000)
    more = f" and {filter_string}" if filter_string else ""
    since = max(cursor_ms - OVERLAP_MS, 0)
    ended = [
        _ended(run, experiment, int(run.info.end_time))
        for run in _runs(tracking, found.experiment_id, f"attributes.end_time >= {since}{more}")
        if run.info.run_id not in seen and run.info.end_time and run.info.status != "RUNNING"
    ]
    latest = max([cursor_ms, *(run.ended_ms for run in ended)])
    wanted = f"attributes.status = 'RUNNING'{more}"
    for run in _runs(tracking, found.experiment_id, wanted):
        last_ms = last_sign_ms(run)
        if run.info.run_id not in seen and now_ms - last_ms > silent_after_s * 1000:
            ended.append(_ended(run, experiment, last_ms))
    return sorted(ended, key=lambda run: (run.ended_ms, run.run_id)), latest


def _runs(tracking: Tracking, experiment_id: str, wanted: str) -> list[Any]:
    search = tracking.client.search_runs
    in_pages = pages(search, [experiment_id], wanted, max_results=RUNS_PER_PAGE)
    # Merges and scored parents may be in the same experiment; they are no training runs.
    return [run for page in in_pages for run in page if not run.data.tags.get("mergeops.role")]


def _ended(run: Any, experiment: str, ended_ms: int) -> EndedRun:
    name = str(run.info.run_name or run.info.run_id[:8])
    return EndedRun(run.info.run_id, name, experiment, str(run.info.status), ended_ms)
