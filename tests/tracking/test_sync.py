"""Trials kept on disk while the server is away, and logged later."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest
from support.tracking_case import Case, make_scores, sha256

from mergeops.checkpoint import weights_sha256
from mergeops.errors import AwayError, TrackingError
from mergeops.progress import Progress
from mergeops.recipe.settings import OutputSpec
from mergeops.store import own_tags
from mergeops.store.client import new_client
from mergeops.store.connection import Tracking, connect
from mergeops.tracking import log_unregistered
from mergeops.tracking.pending import pending_trials
from mergeops.tracking.score_log import scored_runs
from mergeops.tracking.sync import raise_if_failed, sync_trials

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


def test_what_is_kept_goes_to_the_registry_that_it_was_made_for(
    offline: Case, tmp_path: Path, template_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("then", "now"):
        shutil.copy(template_database, tmp_path / f"{name}.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/then.db")
    offline.whole()
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/now.db")
    [result] = sync_trials(work(offline), QUIET)
    assert result.registered == "skills/1", result.problem
    found = {
        name: [
            model.name
            for model in new_client(
                offline.tracking.uri, f"sqlite:///{tmp_path}/{name}.db"
            ).search_registered_models()
        ]
        for name in ("then", "now")
    }
    assert found == {"then": ["skills"], "now": []}


def test_the_same_plan_waits_for_two_servers_side_by_side(
    offline: Case, tmp_path: Path, template_database: Path
) -> None:
    other_uri = f"sqlite:///{tmp_path}/other.db"
    shutil.copy(template_database, tmp_path / "other.db")
    offline.whole()
    spec = dataclasses.replace(offline.tracking.spec, uri=other_uri)
    recipe = dataclasses.replace(offline.recipe, tracking=spec)
    dataclasses.replace(offline, tracking=connect(spec), recipe=recipe).whole()
    waiting = sync_trials(work(offline), QUIET, dry_run=True)
    assert [one.server for one in waiting] == [offline.tracking.uri, other_uri]


def test_sync_logs_what_was_kept_and_forgets_it(offline: Case, tracking: Tracking) -> None:
    offline.whole()
    (result,) = sync_trials(work(offline), QUIET)
    assert (result.outcome, result.registered) == ("logged", "skills/1")
    run = tracking.client.get_run(result.run_id)
    assert run.data.metrics["pooled"] == 0.625
    assert own_tags(run.data.tags)["mergeops.complete"] == "true"
    names = {entry.path for entry in tracking.client.list_artifacts(result.run_id)}
    assert {"leaderboard.md", "leaderboard.json", "lineage.svg", "recipe.yaml"} <= names
    assert sync_trials(work(offline), QUIET) == []


def test_a_kept_merge_that_is_to_be_no_version_becomes_none(
    offline: Case, tracking: Tracking
) -> None:
    with offline.trial() as log:
        log.log_model(offline.checkpoint, weights_sha256=offline.weights)
        log_unregistered(log)
    (result,) = sync_trials(work(offline), QUIET)
    assert (result.outcome, result.registered) == ("logged", "")
    assert own_tags(tracking.client.get_run(result.run_id).data.tags)["mergeops.complete"] == "true"
    assert tracking.client.search_registered_models() == []


def test_a_trial_that_was_stopped_before_its_end_is_left_to_its_command(offline: Case) -> None:
    with pytest.raises(KeyboardInterrupt), offline.trial() as log:
        log.log_model(offline.checkpoint, weights_sha256=offline.weights)
        raise KeyboardInterrupt
    (result,) = sync_trials(work(offline), QUIET)
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
    (result,) = sync_trials(work(offline), QUIET)
    assert result.outcome == "failed"
    assert "no longer those that were merged" in result.problem
    shutil.rmtree(offline.checkpoint)
    (result,) = sync_trials(work(offline), QUIET)
    assert "is gone; run its command again" in result.problem
    with pytest.raises(TrackingError, match="1 of 1 trials could not be logged"):
        raise_if_failed([result])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"format": 1,', '"format": 1', "is damaged (JSONDecodeError"),
        ('"format": 1,', '"format": 99,', "was written by another version of mergeops"),
        ('"task_arithmetic"', '"no_such_method"', "is damaged (ConfigError"),
        ('"format": 1,', '"format": 1, "a": ' + "[" * 5000, "is damaged (RecursionError"),
        (
            '"reason": "',
            '"reason": 3, "x": "',
            "is damaged (TypeError('reason is of another type')",
        ),
    ],
)
def test_a_damaged_record_is_named_and_holds_up_no_other(
    offline: Case, old: str, new: str, problem: str
) -> None:
    dataclasses.replace(offline, digest=sha256("first")).whole()
    (kept,) = pending_trials(work(offline))
    record = kept.folder / "trial.json"
    text = record.read_text()
    assert old in text
    record.write_text(text.replace(old, new))
    offline.whole()
    failed, logged = sorted(sync_trials(work(offline), QUIET), key=lambda result: result.outcome)
    assert (failed.outcome, logged.outcome) == ("failed", "logged")
    assert failed.problem.startswith(f"{record} {problem}")
    with pytest.raises(TrackingError, match="1 of 2 trials could not be logged"):
        raise_if_failed([failed, logged])
    (again,) = sync_trials(work(offline), QUIET, dry_run=True)
    assert again.outcome == "failed"


def test_a_record_that_is_no_file_is_not_waited_for(offline: Case) -> None:
    offline.whole()
    (kept,) = pending_trials(work(offline))
    (kept.folder / "trial.json").unlink()
    os.mkfifo(kept.folder / "trial.json")
    (failed,) = sync_trials(work(offline), QUIET)
    assert "trial.json is damaged (ValueError('it is no file')" in failed.problem


def test_sync_from_another_directory_forgets_what_it_logged(
    offline: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = OutputSpec(dir="work")
    dataclasses.replace(offline, recipe=dataclasses.replace(offline.recipe, output=output)).whole()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (result,) = sync_trials(tmp_path / "work", QUIET)
    assert result.outcome == "logged"
    assert sync_trials(tmp_path / "work", QUIET) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_disk_that_is_full_is_told_in_one_line_and_leaves_nothing_half(
    offline: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrackingError) as caught:
        offline.whole()
    [folder] = (work(offline) / "pending").iterdir()
    assert folder.name.startswith(offline.digest[:16])
    assert str(caught.value).startswith(
        f"the trial 'task_arithmetic density=0.5' cannot be kept in {folder} (No space left on "
        "device), and cannot be logged now (tracking.offline is true"
    )
    assert str(caught.value).endswith("put that right, then run the same command again")
    assert list(folder.iterdir()) == []


def test_offline_other_commands_say_that_they_need_the_server(offline: Case) -> None:
    with pytest.raises(AwayError, match="tracking.offline=false"):
        scored_runs(offline.tracking)
