"""A whole trial against a real ``mlflow server`` process over HTTP, with proxied artifacts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.mlflow_server import Server
from support.tracking_case import Case, make_scores

from mergeops.errors import TrackingError
from mergeops.promotion.candidates import candidates
from mergeops.promotion.champion import make_champion, rollback
from mergeops.store import Subjects, glance, own_tags
from mergeops.tracking.score_log import scored_runs

pytestmark = pytest.mark.integration


def test_a_whole_trial_from_run_to_champion_and_back(
    server: Server, served_case: Callable[[Server], Case], tmp_path: Path, capfd: Any
) -> None:
    import mlflow

    case = served_case(server)
    run_id, version = case.whole()
    client = case.tracking.client
    run = client.get_run(run_id)
    assert run.data.metrics["pooled"] == 0.625
    assert len(run.inputs.model_inputs) == 3
    assert [output.model_id for output in run.outputs.model_outputs] == [
        own_tags(run.data.tags)["mergeops.model_id"]
    ]
    assert [scored.scores for scored in scored_runs(case.tracking) if scored.kind == "merge"] == [
        make_scores()
    ]
    assert [candidate.dev_score for candidate in candidates(case.tracking, "skills")] == [0.625]

    make_champion(case.tracking, "skills", version, {"decision": "promote"}, passed=True, user="me")
    pipeline = mlflow.transformers.load_model("models:/skills@champion")
    answer = pipeline("12 + 3 =", max_new_tokens=4)
    assert answer[0]["generated_text"].startswith("12 + 3 =")
    folder = mlflow.artifacts.download_artifacts(
        "models:/skills@champion/model", dst_path=str(tmp_path / "plain")
    )
    names = {path.name for path in case.checkpoint.iterdir()}
    assert {path.name for path in Path(folder).iterdir()} == names

    second, newer = case.whole(plan_digest="f" * 64, name="other")
    assert (second, newer) != (run_id, version)
    make_champion(case.tracking, "skills", newer, {}, passed=True, user="me")
    assert rollback(case.tracking, "skills", user="me").to == version
    assert client.get_model_version_by_alias("skills", "champion").version == str(version)
    out, _ = capfd.readouterr()
    assert out == ""


def test_a_glance_at_a_server_says_whether_anything_changed(
    server: Server, served_case: Callable[[Server], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = served_case(server)
    run_id, version = case.whole(plan_digest="e" * 64, name="glanced at")
    client, spec = case.tracking.client, case.tracking.spec
    training = str(case.sources["math"].run_id)
    about = Subjects(
        experiment="merges",
        runs=(run_id, training),
        version=("skills", version),
        names=("skills",),
        models=(own_tags(client.get_run(run_id).data.tags)["mergeops.model_id"],),
        weights=(case.base.sha256,),
    )
    seen = [glance(spec, about)]
    assert seen[0] is not None and glance(spec, about) == seen[0]
    client.log_metric(training, "eval_loss", 0.5)
    seen.append(glance(spec, about))
    client.set_registered_model_alias("skills", "tried", str(version))
    seen.append(glance(spec, about))
    client.set_terminated(run_id, "FAILED")
    seen.append(glance(spec, about))
    assert None not in seen and len(set(seen)) == 4
    # What is not there, or not sure, is no answer.
    assert glance(spec, dataclasses.replace(about, runs=("0" * 32,))) is None
    assert glance(spec, dataclasses.replace(about, version=("skills", 99))) is None
    assert glance(dataclasses.replace(spec, registry_uri="sqlite:///r.db"), about) is None
    assert glance(dataclasses.replace(spec, uri="http://127.0.0.1:9"), about) is None
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    assert glance(spec, about) is None


def test_a_server_killed_in_the_middle_is_one_line_and_the_rerun_completes(
    mortal_server: Server, served_case: Callable[[Server], Case]
) -> None:
    case = served_case(mortal_server)
    started = time.monotonic()
    with (
        pytest.raises(TrackingError, match=r"^cannot reach the MLflow server at http://127") as hit,
        case.trial() as log,
    ):
        log.log_model(case.checkpoint, weights_sha256="a" * 64)
        mortal_server.stop()
        log.log_scores(make_scores())
    assert "\n" not in str(hit.value)
    assert "run the same command again" in str(hit.value)
    assert time.monotonic() - started < 30
    mortal_server.start()
    run_id, _ = case.whole()
    assert run_id == log.run_id
    runs = case.tracking.client.search_runs([case.tracking.experiment_id])
    assert sorted(run.data.tags["mergeops.role"] for run in runs) == [
        *("base", "merge", "source", "source")
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}
