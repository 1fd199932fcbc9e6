"""What MLflow holds, read from real servers as MLflow means it: from sqlite and from PostgreSQL,
with artifacts that come through the server, from its disk and from S3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import Fabricator, discover

from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source

pytestmark = pytest.mark.integration
PEFT = (
    "flavors:\n  transformers:\n    model_binary: model\n    peft_adaptor: peft\n"
    "    processor_type: CLIPImageProcessor\n    components: [tokenizer]\n"
)


@pytest.fixture(params=["server", "open_server"])
def trained(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    full_and_adapter: tuple[Path, Path],
) -> Iterator[Fabricator]:
    """An experiment of its own on a server, which is this process's."""
    import mlflow

    uri = request.getfixturevalue(request.param).uri
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(request.node.name)
    yield Fabricator(client, uri, tmp_path, *full_and_adapter, experiment=experiment)
    mlflow.set_tracking_uri(before)


def find(uri: str, trained: Fabricator) -> Source:
    tracking = TrackingSpec(uri=trained.uri)
    return resolve_uri(uri, cache_dir=trained.folder / "cache", tracking=tracking)


def same(found: Path, wanted: Path, name: str = "model.safetensors") -> bool:
    return (found / name).read_bytes() == (wanted / name).read_bytes()


def test_the_best_of_a_runs_models_is_the_lowest_loss_and_not_nan_or_infinity(
    trained: Fabricator,
) -> None:
    from mlflow.entities import Metric

    name = trained.client.get_experiment(trained.experiment).name
    # By a run of another experiment: MLflow shows NaN as 0.0 on a model.
    judge = trained.client.create_run(trained.client.create_experiment(f"of {name}")).info.run_id
    run_id, models = trained.run(), {}
    for step, loss in ((10, 2.0), (20, float("nan")), (30, 1.5), (40, float("-inf"))):
        model = models[step] = trained.logged_model(run_id, f"at-{step}", trained.checkpoint)
        facts = {"model_id": model.model_id, "run_id": judge}
        metric = Metric("val/loss", loss, 1000 + step, step, **facts)
        trained.client.log_batch(judge, metrics=[metric])
    (one,) = discover(name, tracking_uri=trained.uri)
    assert (one.step, one.model_id, one.uri) == (30, models[30].model_id, f"runs:/{run_id}/at-30")
    assert same(find(f"runs:/{run_id}", trained).path, trained.checkpoint)


def test_an_adapter_its_components_and_an_artifact_far_down_are_found(trained: Fabricator) -> None:
    files = trained.folder / "peft-model"
    shutil.copytree(trained.checkpoint, files / "model")
    shutil.copytree(trained.adapter, files / "peft")
    for component, file in (("tokenizer", "vocab.txt"), ("processor", "preprocessor_config.json")):
        (files / "components" / component).mkdir(parents=True)
        (files / "components" / component / file).write_text("{}")
    (files / "MLmodel").write_text(PEFT)
    model = trained.logged_model(trained.run(), "final", files)
    source = find(f"models:/{model.model_id}", trained)
    assert same(source.path, trained.adapter, "adapter_model.safetensors")
    assert source.adapter_base == trained.checkpoint
    for file in ("vocab.txt", "preprocessor_config.json"):
        assert (source.path / file).is_file()
    run_id = trained.run("far down")
    trained.client.log_artifacts(run_id, str(trained.checkpoint), "a/b/c/d/e/final")
    assert same(find(f"runs:/{run_id}", trained).path, trained.checkpoint)


def test_the_folders_of_a_model_come_along(trained: Fabricator) -> None:
    model = trained.save(trained.folder / "sentence")
    (model / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    for folder, file in (
        ("1_Pooling", "config.json"),
        ("1_Pooling", "pytorch_model.bin"),
        ("additional_chat_templates", "tools.jinja"),
        ("elsewhere", "config.json"),
    ):
        (model / folder).mkdir(exist_ok=True)
        (model / folder / file).write_text(file)
    logged = trained.logged_model(trained.run(), "final", model)
    path = find(f"models:/{logged.model_id}", trained).path
    found = {f.relative_to(path).as_posix() for f in path.rglob("*/*")}
    assert found == {
        "1_Pooling/config.json",
        "1_Pooling/pytorch_model.bin",
        "additional_chat_templates/tools.jinja",
    }
    assert same(path, trained.checkpoint)


def test_versions_by_stage_and_of_a_deleted_model_are_what_mlflow_downloads(
    trained: Fabricator,
) -> None:
    import mlflow

    client, name = trained.client, f"of {trained.experiment} it's"
    client.create_registered_model(name)
    run_id = trained.run()
    kept: Any = trained.logged_model(run_id, "kept", trained.checkpoint)
    gone: Any = trained.logged_model(run_id, "gone", trained.checkpoint)
    for model, stage in ((kept, "Staging"), (gone, "Production")):
        made = client.create_model_version(name, model.model_uri, run_id, model_id=model.model_id)
        client.transition_model_version_stage(name, made.version, stage)
    client.delete_logged_model(gone.model_id)
    for uri, number in ((f"models:/{name}/Production", "2"), (f"models:/{name}/staging", "1")):
        source = find(uri, trained)
        theirs = mlflow.artifacts.download_artifacts(uri, dst_path=str(trained.folder / number))
        assert source.registered == f"{name}/{number}"
        assert same(source.path, Path(theirs))
