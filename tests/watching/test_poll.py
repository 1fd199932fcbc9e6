"""Which runs a watch sees of an mlflow database, and that it sees each once."""

from __future__ import annotations

from typing import Any

import pytest

from mergeops.errors import TrackingError
from mergeops.store.connection import Tracking
from mergeops.watching.poll import newly_ended

HOUR_MS = 3_600_000


def run(tracking: Tracking, name: str, status: str, *, ended: int = 0, **more: Any) -> str:
    client = tracking.client
    experiment = client.get_experiment_by_name("finetunes")
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment("finetunes")
    )
    made = client.create_run(
        experiment_id, run_name=name, start_time=more.get("start", 1), tags=more.get("tags", {})
    )
    for at in more.get("logged", ()):
        client.log_metric(made.info.run_id, "loss", 1.0, timestamp=at)
    if status != "RUNNING":
        client.set_terminated(made.info.run_id, status, end_time=ended)
    return str(made.info.run_id)


def test_runs_that_ended_are_seen_once_whatever_became_of_them(tracking: Tracking) -> None:
    for i, status in enumerate(("FINISHED", "FAILED", "KILLED"), 1):
        run(tracking, status.lower(), status, ended=i * 1000)
    found, cursor = newly_ended(tracking, "finetunes", 0, {}, now_ms=5000)
    assert [one.name for one in found] == ["finished", "failed", "killed"]
    assert cursor == 3000
    seen = {one.run_id: one for one in found}
    assert newly_ended(tracking, "finetunes", cursor, seen, now_ms=5000) == ([], 3000)
    # Written late, with an end before the last that was seen.
    run(tracking, "late", "FINISHED", ended=2500)
    again, _ = newly_ended(tracking, "finetunes", cursor, seen, now_ms=5000)
    assert [one.name for one in again] == ["late"]


def test_a_run_that_went_silent_counts_as_ended_and_one_that_logs_does_not(
    tracking: Tracking,
) -> None:
    now = 100 * HOUR_MS
    run(tracking, "silent", "RUNNING", logged=[now - 2 * HOUR_MS])
    run(tracking, "never logged", "RUNNING", start=now - 2 * HOUR_MS)
    run(tracking, "at work", "RUNNING", logged=[now - 60_000])
    run(tracking, "just begun", "RUNNING", start=now - 60_000)
    found, _ = newly_ended(tracking, "finetunes", 0, {}, now_ms=now)
    assert {one.name for one in found} == {"silent", "never logged"}
    assert {one.status for one in found} == {"RUNNING"}


def test_merges_and_runs_that_the_filter_leaves_out_are_not_seen(tracking: Tracking) -> None:
    run(tracking, "merge", "FINISHED", ended=1, tags={"mergeops.role": "merge"})
    run(tracking, "nlp", "FINISHED", ended=1, tags={"team": "nlp"})
    run(tracking, "vision", "FINISHED", ended=1, tags={"team": "vision"})
    wanted = "tags.team = 'nlp'"
    found, _ = newly_ended(tracking, "finetunes", 0, {}, filter_string=wanted, now_ms=5)
    assert [one.name for one in found] == ["nlp"]


def test_an_experiment_that_is_not_there_is_named(tracking: Tracking) -> None:
    with pytest.raises(TrackingError, match="there is no experiment 'fintunes' at sqlite"):
        newly_ended(tracking, "fintunes", 0, {})
