"""What is said of runs, artifacts and models that are deleted, moved, or not ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.training_runs import Fabricator, discover

from mergeops.adoption.adoption import adopt
from mergeops.cli.main import cli
from mergeops.errors import SourceError
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri


def problem(fabricate: Fabricator, uri: str, **how: Any) -> str:
    """What is said when this is a source."""
    with pytest.raises(SourceError) as raised:
        tracking = TrackingSpec(uri=fabricate.uri)
        resolve_uri(uri, cache_dir=fabricate.folder / "cache", tracking=tracking, **how)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def with_checkpoint(fabricate: Fabricator, name: str = "run") -> tuple[str, Path]:
    output = fabricate.folder / "out" / name
    fabricate.save(output / "checkpoint-2")
    return fabricate.run(name, params={"output_dir": str(output)}), output


def test_a_deleted_run_says_how_to_restore_it_and_is_not_listed(fabricate: Fabricator) -> None:
    run_id, _ = with_checkpoint(fabricate)
    with_checkpoint(fabricate, "kept")
    fabricate.client.delete_run(run_id)
    assert problem(fabricate, f"runs:/{run_id}") == (
        f"run {run_id} is deleted in MLflow; restore it with `mlflow runs restore "
        f"--run-id {run_id}`"
    )
    assert [one.run_name for one in discover("old", tracking_uri=fabricate.uri)] == ["kept"]


def test_a_version_whose_run_is_deleted_still_leads_to_its_bytes(fabricate: Fabricator) -> None:
    run_id, output = with_checkpoint(fabricate)
    adopt("old", tracking_uri=fabricate.uri, register="ing")
    fabricate.client.delete_run(run_id)
    tracking = TrackingSpec(uri=fabricate.uri)
    source = resolve_uri("models:/ing/1", cache_dir=fabricate.folder, tracking=tracking)
    assert source.path == output / "checkpoint-2"


def test_a_checkpoint_that_is_removed_after_adoption_is_missed_by_name(
    fabricate: Fabricator,
) -> None:
    _, output = with_checkpoint(fabricate)
    adopt("old", tracking_uri=fabricate.uri, register="ing")
    shutil.rmtree(output)
    where = str(output / "checkpoint-2")
    assert f"{where} is empty or does not exist" in problem(fabricate, "models:/ing/1")
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert f"param output_dir is {output}, which is empty or not reachable" in str(one.problem)


def test_artifacts_that_are_gone_from_the_store_are_missed_by_name(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    model = fabricate.logged_model(
        run_id, "checkpoint-2", fabricate.checkpoint, "artifacts/checkpoint-2"
    )
    shutil.rmtree(model.artifact_location.removeprefix("file://"))
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert f"{model.model_id}/artifacts is empty or does not exist" in str(one.problem)
    assert "is empty or does not exist" in problem(fabricate, f"runs:/{run_id}/checkpoint-2")


def test_a_bucket_that_moved_is_found_with_a_path_map(fabricate: Fabricator) -> None:
    now = fabricate.folder / "now"
    fabricate.save(now / "ft/checkpoint-2")
    fabricate.run(tags={"mergeops.checkpoint_uri": "s3://old-bucket/ft"})
    (one,) = discover("old", tracking_uri=fabricate.uri, path_map={"s3://old-bucket": str(now)})
    assert (one.problem, one.checkpoint) == (None, str(now / "ft/checkpoint-2"))


def test_a_bucket_that_cannot_be_reached_is_one_line(
    fabricate: Fabricator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fabricate.run(tags={"mergeops.checkpoint_uri": "s3://gone/ft"})
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert "s3://gone/ft" in str(one.problem)
    assert "\n" not in str(one.problem)


def test_a_foreign_external_model_says_what_tag_it_needs(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    model = fabricate.client.create_logged_model(
        fabricate.experiment,
        "elsewhere",
        source_run_id=run_id,
        tags={"mlflow.model.isExternal": "true"},
    )
    fabricate.client.finalize_logged_model(model.model_id, "READY")
    uri = f"models:/{model.model_id}"
    assert problem(fabricate, uri) == (
        f"{uri} is an external model and MLflow does not hold its weights; set its tag "
        "mergeops.checkpoint_uri to where they are"
    )
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert "it left no checkpoint" in str(one.problem)


def test_a_foreign_model_without_weights_says_what_it_holds(
    fabricate: Fabricator, tmp_path: Path
) -> None:
    staged = tmp_path / "sklearn"
    staged.mkdir()
    (staged / "model.pkl").write_bytes(b"x")
    (staged / "MLmodel").write_text("flavors: {sklearn: {}}\n")
    run_id = fabricate.run()
    model = fabricate.logged_model(run_id, "forest", staged)
    text = problem(fabricate, f"models:/{model.model_id}")
    assert "holds no checkpoint" in text and "it has MLmodel, model.pkl" in text
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert one.problem is not None


def test_an_upload_that_did_not_finish_is_named(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    model = fabricate.client.create_logged_model(
        fabricate.experiment, "checkpoint-2", source_run_id=run_id
    )
    (one,) = discover("old", tracking_uri=fabricate.uri)
    assert f"checkpoint-2 ({model.model_id}) is PENDING" in str(one.problem)


def test_the_command_lists_problems_below_the_table(fabricate: Fabricator) -> None:
    with_checkpoint(fabricate, "good")
    fabricate.run("lost", params={"output_dir": "/mnt/gone"}, status="FAILED")
    arguments = ["adopt", "--experiment", "old", "--tracking-uri", fabricate.uri, "--dry-run"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0
    assert (
        "lost (FAILED): param output_dir is /mnt/gone, which is empty or not reachable from here; "
        "if it moved, map it with path_map"
    ) in done.output.splitlines()
    assert "1 of 2 runs left a checkpoint to merge; 0 new in MLflow, nothing copied" in done.output
