"""A trial killed after any write to MLflow is completed by the same command; nothing doubles."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeops.checkpoint import weights_sha256
from mergeops.errors import AwayError, TrackingError
from mergeops.progress import Progress
from mergeops.recipe.settings import OutputSpec
from mergeops.store import own_tags
from mergeops.tracking import sync_trials

ALL_FAULTS = "MERGEOPS_ALL_FAULTS"
"""Set it to have the server go away at every write; else at each third one."""
READS = ("get_", "search_", "list_", "download_")


class KilledError(BaseException):
    """As kill -9: nothing runs after it, not even what marks the run as failed."""


class Dying:
    """A client whose process dies right after its ``fatal``-th write (0: never)."""

    def __init__(self, client: Any, fatal: int) -> None:
        self.client, self.fatal = client, fatal
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.fatal and len(self.writes) >= self.fatal:
                raise KilledError
            result = member(*args, **kwargs)
            if not name.startswith(READS):
                self.writes.append(name)
                if len(self.writes) == self.fatal:
                    raise KilledError
            return result

        return call


class Away(Dying):
    """A client whose server goes away before or after its ``fatal``-th write, for good."""

    def __init__(self, client: Any, fatal: int, *, done: bool) -> None:
        super().__init__(client, fatal)
        self.done, self.is_away = done, False

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.is_away and not name.startswith(READS):
                self.writes.append(name)
                self.is_away = len(self.writes) == self.fatal
                if self.is_away and self.done:
                    member(*args, **kwargs)
            if self.is_away:
                raise AwayError("cannot reach the MLflow server")
            return member(*args, **kwargs)

        return call


def dying(case: Any, fatal: int) -> tuple[Any, Dying]:
    client = Dying(case.tracking.client, fatal)
    return dataclasses.replace(case.tracking, client=client), client


def steps_to_die_at(writes: list[str]) -> list[int]:
    """One kill after each write; of a method that repeats, the first two times and the last."""
    seen: Counter[str] = Counter()
    total = Counter(writes)
    chosen = []
    for i, name in enumerate(writes, start=1):
        seen[name] += 1
        if seen[name] <= 2 or seen[name] == total[name]:
            chosen.append(i)
    return chosen


def check_whole_and_single(case: Any, version: int) -> None:
    client, experiment = case.tracking.client, case.tracking.experiment_id
    runs = client.search_runs([experiment])
    roles = Counter(run.data.tags["mergeops.role"] for run in runs)
    assert roles == {"merge": 1, "source": 2, "base": 1}
    for run in runs:
        assert run.info.status == "FINISHED"
        assert set(run.data.metrics) == {
            *("arithmetic/acc", "arithmetic/acc_stderr", "dates/acc", "dates/acc_stderr"),
            *("pooled_low", "pooled_high", "pooled"),
        }
        for name in run.data.metrics:
            assert len(client.get_metric_history(run.info.run_id, name)) == 1, name
    models = client.search_logged_models([experiment])
    assert Counter(model.model_type for model in models) == roles
    assert {str(model.status) for model in models} == {"READY"}
    assert {len(model.metrics or []) for model in models} == {7}
    merge = next(run for run in runs if run.data.tags["mergeops.role"] == "merge")
    assert own_tags(merge.data.tags)["mergeops.complete"] == "true"
    whole = client.get_run(merge.info.run_id)
    outputs = [output.model_id for output in whole.outputs.model_outputs]
    inputs = [model.model_id for model in whole.inputs.model_inputs]
    assert len(outputs) == 1
    assert sorted([*inputs, *outputs]) == sorted(model.model_id for model in models)
    artifacts = {entry.path for entry in client.list_artifacts(merge.info.run_id)}
    assert artifacts >= {"recipe.yaml", "plan.json", "lock.json", "scores", "samples"}
    versions = client.search_model_versions("name = 'skills'")
    assert [int(found.version) for found in versions] == [version] == [1]


@pytest.mark.sweep
def test_a_trial_killed_after_any_write_is_completed_by_the_same_command(
    fresh_case: Callable[[], Any],
) -> None:
    case = fresh_case()
    tracking, client = dying(case, 0)
    _, version = case.whole(tracking=tracking)
    check_whole_and_single(case, version)
    for step in steps_to_die_at(client.writes):
        case = fresh_case()
        with pytest.raises(KilledError):
            case.whole(tracking=dying(case, step)[0])
        _, version = case.whole()
        check_whole_and_single(case, version)


@pytest.mark.sweep
def test_a_trial_whose_server_goes_away_at_any_write_is_logged_by_sync(
    fresh_case: Callable[[], Any], tmp_path: Path
) -> None:
    case = fresh_case()
    tracking, client = dying(case, 0)
    case.whole(tracking=tracking)
    chosen = steps_to_die_at(client.writes)
    for step in chosen if os.environ.get(ALL_FAULTS) else chosen[::3]:
        case = fresh_case()
        output = OutputSpec(dir=str(tmp_path / f"work-{step}"))
        case = dataclasses.replace(
            case,
            recipe=dataclasses.replace(case.recipe, output=output),
            weights=weights_sha256(case.checkpoint),
        )
        away = Away(case.tracking.client, step, done=step % 2 == 0)
        with pytest.raises(AwayError, match="mergeops sync"):
            case.whole(tracking=dataclasses.replace(case.tracking, client=away))
        (result,) = sync_trials(Path(output.dir), Progress(quiet=True))
        assert result.outcome == "logged", result
        check_whole_and_single(case, int(result.registered.split("/")[1]))


def test_running_a_finished_trial_again_writes_only_what_is_overwritten(case: Any) -> None:
    first = case.whole()
    before = case.tracking.client.get_run(first[0])
    tracking, client = dying(case, 0)
    assert case.whole(tracking=tracking) == first
    assert set(client.writes) == {"log_text", "set_tag"}
    assert case.tracking.client.get_run(first[0]).data.params == before.data.params


def test_a_resumed_run_is_marked_and_its_error_is_gone(case: Any) -> None:
    with pytest.raises(ValueError, match="broken"), case.trial() as log:
        raise ValueError("broken\nat s3://key:secret@bucket/x")
    failed = case.tracking.client.get_run(log.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["mergeops.error"] == "ValueError: broken at s3://bucket/x"
    run_id, _ = case.whole()
    assert run_id == log.run_id
    tags = own_tags(case.tracking.client.get_run(run_id).data.tags)
    assert tags["mergeops.resumed"] == "1"
    assert "mergeops.error" not in tags


def test_ctrl_c_marks_the_run_killed_and_its_model_failed(case: Any) -> None:
    tracking, _ = dying(case, 0)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), case.trial(tracking=tracking) as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64, progress=stop)
    client = case.tracking.client
    assert client.get_run(log.run_id).info.status == "KILLED"
    assert str(client.get_logged_model(log.model_id).status) == "FAILED"
    _, version = case.whole()
    check_whole_and_single(case, version)


def test_an_error_in_a_later_command_leaves_a_complete_trial_complete(case: Any) -> None:
    run_id, _ = case.whole()
    with pytest.raises(ValueError, match="later"), case.trial():
        raise ValueError("later")
    run = case.tracking.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "mergeops.error" not in run.data.tags


def test_two_processes_do_not_log_the_same_plan_at_once(case: Any) -> None:
    with (
        case.trial(),
        pytest.raises(TrackingError, match=r"trial 'task_arithmetic.*' is being worked on by proc"),
        case.trial(),
    ):
        pass


def test_of_two_runs_that_raced_the_older_one_is_used_and_the_newer_one_removed(case: Any) -> None:
    tracking, client = dying(case, 0)
    other: list[str] = []

    def create_run(*args: Any, **kwargs: Any) -> Any:
        if not other:
            other.append(case.tracking.client.create_run(*args, **kwargs).info.run_id)
        return case.tracking.client.create_run(*args, **kwargs)

    client.create_run = create_run  # type: ignore[method-assign]
    with case.trial(tracking=tracking) as log:
        assert log.run_id == other[0]
    assert len(case.tracking.client.search_runs([case.tracking.experiment_id])) == 1
