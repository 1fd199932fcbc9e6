"""Trials kept on disk while the server is away, and logged later."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from tracking_case import Case, make_scores

from mergeops.checkpoint import weights_sha256
from mergeops.errors import AwayError, TrackingError
from mergeops.progress import Progress
from mergeops.settings import OutputSpec
from mergeops.sync import raise_if_failed, sync
from mergeops.tracking.connection import Tracking, connect
from mergeops.tracking.pending import pending_trials

QUIET = Progress(quiet=True)


@pytest.fixture
def offline(case: Case, tmp_path: Path) -> Case:
    """A trial that is made without its server; the merge is in a directory of its own."""
    checkpoint = tmp_path / "work" / "merge"
    shutil.copytree(case.checkpoint, checkpoint)
    spec = dataclasses.replace(case.tracking.spec, offline=True)
    output = OutputSpec(dir=str(tmp_path / "work"))
    return dataclasses.replace(
        case,
        tracking=connect(spec),
        recipe=dataclasses.replace(case.recipe, tracking=spec, output=output),
        checkpoint=checkpoint,
        weights=weights_sha256(checkpoint),
    )


def work(case: Case) -> Path:
    return Path(case.recipe.output.dir)


def test_what_is_kept_is_read_back_as_it_was(offline: Case) -> None:
    offline.whole()
    (kept,) = pending_trials(work(offline))
    assert kept.recipe == offline.recipe
    assert kept.sources == offline.sources
    assert kept.base == offline.base
    assert kept.scores == make_scores()
    assert kept.parents == {name: make_scores(name) for name in ("base", "math", "dates")}
    assert kept.checkpoint == offline.checkpoint
    assert (kept.artifacts / "leaderboard.md").read_text() == "# leaderboard"


def test_sync_logs_what_was_kept_and_forgets_it(offline: Case, tracking: Tracking) -> None:
    offline.whole()
    (result,) = sync(work(offline), QUIET)
    assert (result.outcome, result.registered) == ("logged", "skills/1")
    run = tracking.client.get_run(result.run_id)
    assert run.data.metrics["pooled"] == 0.625
    assert run.data.tags["mergeops.complete"] == "true"
    names = {entry.path for entry in tracking.client.list_artifacts(result.run_id)}
    assert {"leaderboard.md", "leaderboard.json", "lineage.svg", "recipe.yaml"} <= names
    assert sync(work(offline), QUIET) == []


def test_a_trial_that_was_stopped_before_its_end_is_left_to_its_command(offline: Case) -> None:
    with pytest.raises(KeyboardInterrupt), offline.trial() as log:
        log.log_model(offline.checkpoint, weights_sha256=offline.weights)
        raise KeyboardInterrupt
    (result,) = sync(work(offline), QUIET)
    assert result.outcome == "unfinished"
    assert "run its command again" in result.problem
    assert len(pending_trials(work(offline))) == 1
    raise_if_failed([result])


def test_nothing_is_kept_before_there_is_a_merge(offline: Case) -> None:
    with pytest.raises(KeyboardInterrupt), offline.trial():
        raise KeyboardInterrupt
    assert pending_trials(work(offline)) == []


def test_a_merge_that_changed_or_went_since_is_not_logged(offline: Case) -> None:
    offline.whole()
    weights = offline.checkpoint / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    (result,) = sync(work(offline), QUIET)
    assert result.outcome == "failed"
    assert "no longer those that were merged" in result.problem
    shutil.rmtree(offline.checkpoint)
    (result,) = sync(work(offline), QUIET)
    assert "is gone; run its command again" in result.problem
    with pytest.raises(TrackingError, match="1 of 1 trials could not be logged"):
        raise_if_failed([result])


def test_a_damaged_record_names_its_file(offline: Case) -> None:
    offline.whole()
    (kept,) = pending_trials(work(offline))
    (kept.folder / "trial.json").write_text('{"format": 1')
    with pytest.raises(TrackingError, match=r"trial.json is damaged .* run the trial's command"):
        sync(work(offline), QUIET)


def test_offline_other_commands_say_that_they_need_the_server(offline: Case) -> None:
    with pytest.raises(AwayError, match="tracking.offline=false"):
        offline.tracking.scored()
