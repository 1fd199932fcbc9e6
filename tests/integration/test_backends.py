"""Whole trials as a user runs them, against real servers on loopback.

    full      mlflow server over PostgreSQL, artifacts through the server onto S3, basic auth
    proxied   the same without accounts
    direct    mlflow server over sqlite, artifacts put onto S3 by the client

S3 is moto's server process, which speaks the protocol over HTTP, multipart uploads included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.mlflow_server import PASSWORD
from support.s3_server import S3
from support.tracking_case import Case, make_case, make_recipe, make_scores
from support.user_place import ended, mergeops

from mergeops.errors import TrackingError
from mergeops.recipe.settings import TrackingSpec
from mergeops.store.connection import connect
from mergeops.store.made_once import log_params, unless_raced
from mergeops.tracking import register_trial
from mergeops.tracking.score_log import scored_runs
from mergeops.tracking.trials import read_recipe

pytestmark = pytest.mark.integration

RUN = ("run", "--config-dir", "conf", "recipe=three", "method=ties", "method.density=0.5")


def objects(s3: S3, bucket: str, part: str) -> dict[str, Any]:
    """Name below ``part`` -> what the bucket says of it."""
    pages = s3.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    found = [entry for page in pages for entry in page.get("Contents", [])]
    return {e["Key"].split(part)[1]: e for e in found if part in e["Key"]}


@pytest.mark.parametrize("backend", [pytest.param("full", marks=pytest.mark.sweep), "direct"])
def test_a_whole_trial_is_tracked_promoted_loaded_and_verified(
    backend: str, place: Path, s3: S3, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import mlflow

    environment = request.getfixturevalue(backend)
    words = (f"tracking.registered_model=whole-{backend}", f"tracking.experiment=e-{backend}")
    trial = json.loads(mergeops(place, *RUN, *words, "--json", **environment))
    assert trial["registered"] == f"whole-{backend}/1"
    mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    client.set_registered_model_alias(f"whole-{backend}", "champion", "1")
    uri = f"models:/whole-{backend}@champion"
    pipeline = mlflow.transformers.load_model(uri)
    assert pipeline("12 + 3 =", max_new_tokens=4)[0]["generated_text"].startswith("12 + 3 =")
    said = mlflow.pyfunc.load_model(uri).predict(["12 + 3 ="])
    assert len(said) == 1
    plain = Path(
        mlflow.artifacts.download_artifacts(f"{uri}/model", dst_path=str(tmp_path / "plain"))
    )
    checkpoint = Path(trial["checkpoint"])
    if not checkpoint.is_absolute():
        checkpoint = place / checkpoint
    assert {p.name: p.read_bytes() for p in plain.iterdir()} == {
        p.name: p.read_bytes() for p in checkpoint.iterdir() if not p.name.startswith(".")
    }
    assert "every file is as its manifest says" in mergeops(place, "verify", uri, **environment)

    model_id = client.get_run(trial["run_id"]).outputs.model_outputs[0].model_id
    bucket = {"full": "proxied", "direct": "direct"}[backend]
    stored = objects(s3, bucket, f"{model_id}/artifacts/")
    assert {"MLmodel", "model/model.safetensors", "model/mergeops.json"} <= set(stored)


def served(environment: dict[str, str], checkpoint: Path, name: str) -> Case:
    spec = TrackingSpec(
        uri=environment["MLFLOW_TRACKING_URI"], experiment=name, registered_model=name
    )
    return make_case(connect(spec), checkpoint, finetunes=f"{name}-runs")


@pytest.fixture
def large(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with a file of 24 MB, which boto3 sends in parts."""
    folder = tmp_path / "large"
    shutil.copytree(checkpoint, folder)
    (folder / "more.safetensors").write_bytes(hashlib.shake_256(b"weights").digest(24 * 2**20))
    return folder


@pytest.mark.parametrize("backend", ["proxied", "direct"])
def test_a_large_file_goes_in_parts_with_progress_inside_it_and_no_copy_on_disk(
    backend: str,
    large: Path,
    s3: S3,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    environment = request.getfixturevalue(backend)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    case = served(environment, large, f"large-{backend}")
    seen: list[int] = []
    used: list[int] = []

    def watch(done: int, total: int) -> None:
        seen.append(done)
        used.append(sum(p.stat().st_size for p in scratch.rglob("*") if p.is_file()))

    with case.trial() as log:
        model_id = log.log_model(large, weights_sha256="a" * 64, progress=watch)
    assert seen == sorted(seen)
    assert len([done for done in seen if 2**20 < done < 24 * 2**20]) > 3
    assert max(used) < 100_000
    stored = objects(s3, backend, f"{model_id}/artifacts/")["model/more.safetensors"]
    assert stored["Size"] == 24 * 2**20
    # S3 marks what came in parts: 24 MB in parts of 8 are three.
    assert stored["ETag"].strip('"').endswith("-3")


def test_parts_go_past_the_server_where_mlflow_is_told_so(
    proxied: dict[str, str], large: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(10 * 2**20))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(6 * 2**20))
    case = served(proxied, large, "parts")
    with case.trial() as log:
        model_id = log.log_model(large, weights_sha256="a" * 64)
    stored = objects(s3, "proxied", f"{model_id}/artifacts/")["model/more.safetensors"]
    assert stored["ETag"].strip('"').endswith("-4")


def test_bytes_that_changed_in_the_store_are_found_by_their_hash_and_sent_again(
    direct: dict[str, str], large: Path, s3: S3
) -> None:
    from mergeops.store import packaging

    case = served(direct, large, "changed")
    with case.trial() as log:
        model_id = log.log_model(large, weights_sha256="a" * 64)
    key = objects(s3, "direct", f"{model_id}/artifacts/")["model/more.safetensors"]["Key"]
    s3.client.put_object(Bucket="direct", Key=key, Body=b"\0" * (24 * 2**20))
    model = case.tracking.client.get_logged_model(model_id)
    packaging.upload(case.tracking, model, large)
    sent = s3.client.get_object(Bucket="direct", Key=key)["Body"].read()
    assert sent == (large / "more.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        (
            {"MLFLOW_TRACKING_PASSWORD": "wrong-password"},
            "denies access; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        (
            {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""},
            "denies access; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
    ],
)
def test_a_wrong_password_is_one_line(
    full: dict[str, str], place: Path, credentials: dict[str, str], message: str
) -> None:
    done = ended(place, *RUN, **{**full, **credentials})
    assert done.returncode == 6
    errors = [line for line in done.stderr.splitlines() if line.startswith("mergeops: error:")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "wrong-password" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "mergeops-work" / "merges").exists()


def test_names_and_values_that_a_strict_database_refuses_are_mapped_and_kept_in_full(
    proxied: dict[str, str], checkpoint: Path
) -> None:
    case = served(proxied, checkpoint, "strict")
    long = "ü€😀" * 3000
    recipe = make_recipe(
        case.tracking.spec,
        name="n" * 400,
        sources={
            "math": {"uri": f"/checkpoints/{long}", "weight": 0.5},
            "dates": {"uri": "/checkpoints/nul\0and\ud800half", "weight": 0.25},
        },
    )
    scores = make_scores(right={"pass@1, exact (50%)/strict=match": 3, "t" * 300: 2})
    with dataclasses.replace(case, recipe=recipe).trial(name="n" * 400 + "\0") as log:
        log.log_model(checkpoint, weights_sha256="a" * 64)
        log.log_scores(scores)
        log.describe("text " * 5000 + "\0")
        version = register_trial(log)
    client = case.tracking.client
    run = client.get_run(log.run_id)
    assert len(run.info.run_name) == 250
    assert "pass_at_1_ exact _50__/strict_match/acc" in run.data.metrics
    assert len([name for name in run.data.metrics if name.startswith("ttt")]) == 2
    assert len(run.data.params["sources.math.uri"]) == 6000
    assert "nuland" in run.data.params["sources.dates.uri"]
    assert client.get_model_version("strict", str(version)).description.count("n") > 200
    assert read_recipe(case.tracking, log.run_id)["sources"]["math"]["uri"].endswith(long)
    assert scored_runs(case.tracking)[0].scores.tasks.keys() == scores.tasks.keys()


@pytest.mark.parametrize("database", ["server", "open_server"])
def test_two_that_log_the_same_onto_one_run_at_once_both_go_on(
    database: str, request: pytest.FixtureRequest
) -> None:
    from mlflow.entities import LoggedModelInput

    uri = request.getfixturevalue(database).uri
    tracking = connect(TrackingSpec(uri=uri, experiment="at once"))
    client, params = tracking.client, {f"p{i}": "1" for i in range(50)}
    for _ in range(3):
        run_id = client.create_run(tracking.experiment_id).info.run_id
        made = client.create_logged_model(tracking.experiment_id, source_run_id=run_id)
        inputs = [LoggedModelInput(made.model_id)]
        together = threading.Barrier(2)

        def log(run_id: str, inputs: list[Any], together: threading.Barrier) -> None:
            together.wait()
            unless_raced(lambda: client.log_inputs(run_id, models=inputs))
            log_params(client, run_id, params)

        with ThreadPoolExecutor(2) as both:
            list(both.map(log, [run_id] * 2, [inputs] * 2, [together] * 2))
        run = client.get_run(run_id)
        assert run.data.params == params
        assert [one.model_id for one in run.inputs.model_inputs] == [made.model_id]


def test_no_credential_reaches_the_server(
    full: dict[str, str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("HF_TOKEN", "hf_TopSecret")
    uri = full["MLFLOW_TRACKING_URI"].replace("://", f"://admin:{PASSWORD}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    case = served({"MLFLOW_TRACKING_URI": uri}, checkpoint, "secrets")
    secret = "s3://key:TopSecret@bucket/x?X-Amz-Signature=TopSecret&token=TopSecret"
    recipe = make_recipe(case.tracking.spec, base=secret, sources={"math": {"uri": secret}})
    source = dataclasses.replace(case.sources["math"], uri=secret)
    base = dataclasses.replace(case.base, uri=secret)
    case = dataclasses.replace(case, recipe=recipe, sources={"math": source}, base=base)
    run_id, _ = case.whole()
    client = case.tracking.client
    runs = client.search_runs([case.tracking.experiment_id])
    models = client.search_logged_models([case.tracking.experiment_id])
    versions = client.search_model_versions("name = 'secrets'")
    files = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    said = [str(entity.to_dictionary()) for entity in [*runs, *models]]
    said += [str(dict(version)) for version in versions]
    said += [path.read_text("latin-1") for path in files.rglob("*") if path.is_file()]
    assert len(said) > 10
    for text in said:
        assert "TopSecret" not in text
        assert PASSWORD not in text


def test_doctor_tries_the_artifact_store_and_leaves_nothing(
    full: dict[str, str], place: Path, s3: S3
) -> None:
    s3.client.put_object(Bucket="proxied", Key="other", Body=b"x")
    before = {entry["Key"] for entry in s3.client.list_objects_v2(Bucket="proxied")["Contents"]}
    checks = {c["name"]: c for c in json.loads(mergeops(place, "doctor", "--json", **full))}
    assert checks["tracking"]["status"] == "ok"
    assert checks["access"]["detail"] == "admin is let in"
    assert checks["artifacts"]["status"] == "ok"
    after = {entry["Key"] for entry in s3.client.list_objects_v2(Bucket="proxied")["Contents"]}
    assert after == before


def test_doctor_says_what_is_wrong_with_the_artifact_store(
    direct: dict[str, str], place: Path
) -> None:
    connect(TrackingSpec(uri=direct["MLFLOW_TRACKING_URI"]))
    away = {**direct, "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}
    checks = {c["name"]: c for c in json.loads(mergeops(place, "doctor", "--json", code=1, **away))}
    assert checks["tracking"]["status"] == "ok"
    assert checks["access"]["detail"] == "open to everyone who can reach it"
    assert checks["artifacts"]["status"] == "fail"
    assert "cannot reach the artifact store s3://direct" in checks["artifacts"]["detail"]
    assert "MLFLOW_S3_ENDPOINT_URL=http://127.0.0.1:9" in checks["artifacts"]["detail"]


def test_artifacts_that_went_and_buckets_that_moved_are_told_in_one_line(
    direct: dict[str, str], checkpoint: Path, s3: S3
) -> None:
    case = served(direct, checkpoint, "moved")
    run_id, _ = case.whole()
    keys = [entry["Key"] for name, entry in objects(s3, "direct", f"{run_id}/artifacts/").items()]
    s3.client.delete_objects(
        Bucket="direct", Delete={"Objects": [{"Key": key} for key in keys if "scores" in key]}
    )
    with pytest.raises(TrackingError) as caught:
        scored_runs(case.tracking)
    assert "scores/dev.json" in str(caught.value)
    assert "\n" not in str(caught.value)

    client = case.tracking.client
    client.create_experiment("elsewhere", artifact_location="s3://no-such-bucket/x")
    spec = dataclasses.replace(case.tracking.spec, experiment="elsewhere")
    with pytest.raises(TrackingError, match="no such bucket"):
        dataclasses.replace(case, tracking=connect(spec)).whole()
