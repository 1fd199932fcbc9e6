"""A server that goes away at any request of a trial: nothing is lost, and nothing doubled."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.faulty_proxy import FaultyProxy
from support.mlflow_server import Server
from support.tracking_case import Case, make_case, make_source, sha256
from support.user_place import command, environment, mergeops

from mergeops.checkpoint import weights_sha256
from mergeops.errors import AwayError, TrackingError
from mergeops.progress import Progress
from mergeops.recipe.settings import OutputSpec, TrackingSpec
from mergeops.store import own_tags
from mergeops.store.connection import connect
from mergeops.tracking.sync import sync_trials

pytestmark = pytest.mark.integration

ALL_FAULTS = "MERGEOPS_ALL_FAULTS"
"""Set it to break the line at every request; else a few, spread over the whole trial."""


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    running = FaultyProxy(server.uri)
    yield running
    running.close()


@pytest.fixture
def shared(
    proxy: FaultyProxy, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Case:
    # One retry, as with a short timeout; what the retry does is part of the test.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    name = tmp_path.name
    spec = TrackingSpec(uri=proxy.uri, experiment=name, registered_model=name, timeout_s=5)
    case = make_case(connect(spec), checkpoint, finetunes=f"{name}-runs")
    recipe = dataclasses.replace(case.recipe, output=OutputSpec(dir=str(tmp_path / "work")))
    return dataclasses.replace(case, recipe=recipe, weights=weights_sha256(checkpoint))


def of_its_own(case: Case, name: str) -> Case:
    """The case with a plan and parents that no other has."""
    sources = {
        source: dataclasses.replace(found, sha256=sha256(f"{source} {name}"))
        for source, found in case.sources.items()
    }
    base = make_source("base", sha256=sha256(f"base {name}"))
    return dataclasses.replace(case, sources=sources, base=base, digest=sha256(name))


def check_once(case: Case) -> None:
    """The trial and its parents are there, whole, and once."""
    client, experiment = case.tracking.client, case.tracking.experiment_id
    digests = {case.base.sha256, *(source.sha256 for source in case.sources.values())}
    runs = [
        run
        for run in client.search_runs([experiment], max_results=5000)
        if own_tags(run.data.tags).get("mergeops.plan_digest") == case.digest
        or own_tags(run.data.tags).get("mergeops.weights_sha256") in digests
    ]
    roles = {"merge": 1, "source": 2, "base": 1}
    assert Counter(run.data.tags["mergeops.role"] for run in runs) == roles
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for name in run.data.metrics:
            assert len(client.get_metric_history(run.info.run_id, name)) == 1, name
        assert len(run.data.metrics) == 7
    merge = next(run for run in runs if run.data.tags["mergeops.role"] == "merge")
    assert own_tags(merge.data.tags)["mergeops.complete"] == "true"
    models = [
        model
        for model in client.search_logged_models([experiment], max_results=5000)
        if model.tags.get("mergeops.plan_digest") == case.digest
        or model.tags.get("mergeops.weights_sha256") in digests
    ]
    assert Counter(model.model_type for model in models) == roles
    assert {str(model.status) for model in models} == {"READY"}
    assert {len(model.metrics or []) for model in models} == {7}
    whole = client.get_run(merge.info.run_id)
    (output,) = [found.model_id for found in whole.outputs.model_outputs]
    linked = [output, *(found.model_id for found in whole.inputs.model_inputs)]
    assert sorted(linked) == sorted(model.model_id for model in models)
    name = case.tracking.spec.registered_model
    versions = [
        version
        for version in client.search_model_versions(f"name = '{name}'")
        if own_tags(version.tags)["mergeops.plan_digest"] == case.digest
    ]
    assert len(versions) == 1
    names = {entry.path for entry in client.list_artifacts(merge.info.run_id)}
    assert names >= {"recipe.yaml", "plan.json", "lock.json", "scores", "samples", "lineage.svg"}


def places(total: int, how_many: int, *, shift: float = 0.0) -> list[int]:
    """Requests to break the line at, counted from 1."""
    if os.environ.get(ALL_FAULTS):
        return list(range(1, total + 1))
    return [1 + int((i + shift) * total / how_many) for i in range(how_many)]


def requests_of_a_trial(case: Case, proxy: FaultyProxy) -> int:
    one = of_its_own(case, "counted")
    with proxy.counting() as counted:
        one.whole()
    check_once(one)
    return counted[0]


@pytest.mark.sweep
@pytest.mark.parametrize("answer_lost", [False, True], ids=["refused", "answer lost"])
def test_a_server_that_goes_away_at_any_request_gets_the_whole_trial_from_sync(
    shared: Case, proxy: FaultyProxy, answer_lost: bool
) -> None:
    work = Path(shared.recipe.output.dir)
    for at in places(requests_of_a_trial(shared, proxy), 4, shift=0.5 * answer_lost):
        case = of_its_own(shared, f"at {at}")
        with proxy.breaking(at, answer_lost=answer_lost), pytest.raises(AwayError) as caught:
            case.whole()
        assert "mergeops sync" in str(caught.value)
        (waiting,) = sync_trials(work, Progress(quiet=True), dry_run=True)
        assert waiting.outcome == "waiting"
        (logged,) = sync_trials(work, Progress(quiet=True))
        assert logged.outcome == "logged", (at, logged)
        assert sync_trials(work, Progress(quiet=True)) == []
        check_once(case)


@pytest.mark.sweep
def test_an_answer_that_is_lost_once_doubles_nothing_though_mlflow_asks_again(
    shared: Case, proxy: FaultyProxy
) -> None:
    for at in places(requests_of_a_trial(shared, proxy), 5, shift=0.7):
        case = of_its_own(shared, f"lost {at}")
        with (
            proxy.breaking(at, answer_lost=True, comes_back=True),
            suppress(TrackingError),
        ):
            case.whole()
        case.whole()
        check_once(case)


def test_sync_goes_on_where_it_was_itself_interrupted(shared: Case, proxy: FaultyProxy) -> None:
    case, work = of_its_own(shared, "twice"), Path(shared.recipe.output.dir)
    with proxy.breaking(40), pytest.raises(AwayError):
        case.whole()
    with proxy.breaking(60):
        (failed,) = sync_trials(work, Progress(quiet=True))
    assert failed.outcome == "failed"
    assert "cannot reach the MLflow server" in failed.problem
    (logged,) = sync_trials(work, Progress(quiet=True))
    assert logged.outcome == "logged"
    check_once(case)


def test_the_same_command_again_completes_a_kept_trial_and_forgets_it(
    shared: Case, proxy: FaultyProxy
) -> None:
    case, work = of_its_own(shared, "again"), Path(shared.recipe.output.dir)
    with proxy.breaking(50), pytest.raises(AwayError):
        case.whole()
    case.whole()
    assert sync_trials(work, Progress(quiet=True)) == []
    check_once(case)


def test_two_that_log_one_plan_at_once_end_with_one_trial(
    shared: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on two machines: neither sees the other's lock.
    from mergeops.tracking import parents, trials

    @contextmanager
    def unlocked(*identity: str, wait: bool = False) -> Iterator[None]:
        yield

    monkeypatch.setattr(trials, "only_one", unlocked)
    monkeypatch.setattr(parents, "only_one", unlocked)
    for turn in range(3):
        case = of_its_own(shared, f"race {turn}")
        with ThreadPoolExecutor(2) as both:
            outcomes = list(both.map(log_at_once, [case] * 2, [threading.Barrier(2)] * 2))
        for outcome in outcomes:
            assert outcome is None or "taken over" in outcome or "deleted" in outcome
        case.whole()
        check_once(case)


def log_at_once(case: Case, together: threading.Barrier) -> str | None:
    together.wait()
    try:
        case.whole()
    except TrackingError as error:
        return str(error)
    return None


def test_two_commands_at_once_that_cannot_see_each_other_end_with_one_trial(
    server: Server, place: Path, tmp_path: Path
) -> None:
    words = ("run", "--config-dir", "conf", "recipe=three", "method=linear")
    words += ("evaluate.tasks=[]", "tracking.register=unscored")
    uri = {"MLFLOW_TRACKING_URI": server.uri}
    started = []
    for name in ("one", "two"):
        # Locks lie in the directory for temporary files.
        (tmp_path / name).mkdir()
        started.append(
            subprocess.Popen(
                command(*words, "tracking.experiment=pair", f"output.dir=work-{name}"),
                cwd=place,
                env=environment(place, TMPDIR=str(tmp_path / name), **uri),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [(process.communicate()[1], process.returncode) for process in started]
    for stderr, code in ended:
        assert code in (0, 6), stderr
        assert code == 0 or "taken over" in stderr or "deleted" in stderr, stderr
    trial = json.loads(
        mergeops(place, *words, "tracking.experiment=pair", "output.dir=work-one", "--json", **uri)
    )
    client = connect(TrackingSpec(uri=server.uri, experiment="pair")).client
    experiment = client.get_experiment_by_name("pair").experiment_id
    runs = client.search_runs([experiment], "tags.`mergeops.role` = 'merge'")
    assert [run.info.run_id for run in runs] == [trial["run_id"]]
    assert runs[0].info.status == "FINISHED"
    models = client.search_logged_models([experiment], "model_type = 'merge'")
    assert len(models) == 1
    versions = client.search_model_versions("name = 'merged'")
    assert [f"merged/{version.version}" for version in versions] == [trial["registered"]]
