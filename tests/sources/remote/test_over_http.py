"""A real MLflow server process that keeps the artifacts itself: checkpoints come over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mlflow_server import Server
from support.training_runs import Fabricator

from mergeops.adoption.adoption import adopt
from mergeops.checkpoint import weights_sha256
from mergeops.errors import SourceError
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(template_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = Server(tmp_path_factory.mktemp("server"), template_database)
    process.start()
    yield process.uri
    process.stop()


@pytest.fixture
def over_http(server: str, tmp_path: Path, full_and_adapter: tuple[Path, Path]) -> Fabricator:
    import mlflow

    client: Any = mlflow.MlflowClient(tracking_uri=server)
    experiment = client.create_experiment(f"far {tmp_path.name}")
    return Fabricator(client, server, tmp_path, *full_and_adapter, experiment=experiment)


def find(uri: str, fabricate: Fabricator) -> Source:
    tracking = TrackingSpec(uri=fabricate.uri)
    return resolve_uri(uri, cache_dir=fabricate.folder / "cache", tracking=tracking)


def test_a_logged_checkpoint_is_downloaded_once_and_is_the_same_as_a_version(
    over_http: Fabricator,
) -> None:
    run_id = over_http.run("a")
    content = over_http.save(over_http.folder / "c")
    (content / "optimizer.pt").write_bytes(b"boom")
    model = over_http.logged_model(run_id, "checkpoint-2", content, "artifacts/checkpoint-2")
    source = find(f"runs:/{run_id}", over_http)
    assert source.path.is_relative_to(over_http.folder / "cache" / "downloads")
    assert source.sha256 == weights_sha256(over_http.checkpoint)
    assert not (source.path / "optimizer.pt").exists()
    assert (source.run_id, source.model_id) == (run_id, model.model_id)
    name = f"ing-{over_http.experiment}"
    (one,) = adopt(
        f"far {over_http.folder.name}", tracking_uri=over_http.uri, register=name
    ).adopted
    assert (one.model_id, one.registered) == (model.model_id, f"{name}/1")
    assert find(f"models:/{name}/1", over_http).path == source.path


def test_an_mlflow_2_layout_and_an_adapter_come_over_http(over_http: Fabricator) -> None:
    run_id = over_http.run("two")
    over_http.save(over_http.folder / "2/checkpoint-4/artifacts/checkpoint-4", lora=True)
    over_http.client.log_artifacts(run_id, str(over_http.folder / "2"))
    source = find(f"runs:/{run_id}", over_http)
    assert source.adapter_base == over_http.checkpoint
    assert (source.path / "adapter_model.safetensors").is_file()


def test_a_checkpoint_beside_the_server_is_adopted_with_a_pointer(over_http: Fabricator) -> None:
    checkpoint = over_http.save(over_http.folder / "out/checkpoint-1")
    run_id = over_http.run("b", params={"output_dir": str(checkpoint.parent)}, status="KILLED")
    experiment, name = f"far {over_http.folder.name}", f"ing-{over_http.experiment}"
    (one,) = adopt(experiment, tracking_uri=over_http.uri, register=name).adopted
    assert one.is_new
    (again,) = adopt(experiment, tracking_uri=over_http.uri, register=name).adopted
    assert (again.model_id, again.registered, again.is_new) == (one.model_id, f"{name}/1", False)
    assert over_http.client.get_run(run_id).info.status == "KILLED"
    for uri in (f"models:/{name}/1", f"models:/{one.model_id}", f"runs:/{run_id}/checkpoint-1"):
        assert find(uri, over_http).path == checkpoint


def test_a_path_cannot_leave_the_artifacts_of_the_server(over_http: Fabricator) -> None:
    run_id = over_http.run("c")
    with pytest.raises(SourceError, match="leaves its directory"):
        find(f"runs:/{run_id}/../../../etc", over_http)
    with pytest.raises(SourceError, match="has no checkpoint or artifact 'nothing'"):
        find(f"runs:/{run_id}/nothing", over_http)


def peft_files(fabricate: Fabricator) -> Path:
    """What ``mlflow.transformers.log_model`` writes of a PEFT model on a local base."""
    from safetensors.torch import load_file, save_file

    files = fabricate.folder / "peft model"
    shutil.copytree(fabricate.adapter, files / "peft")
    shutil.copytree(fabricate.checkpoint, files / "model")
    weights = load_file(files / "model/model.safetensors")
    wrapped = {name.replace(".weight", ".base_layer.weight"): w for name, w in weights.items()}
    save_file(wrapped, files / "model/model.safetensors", metadata={"format": "pt"})
    (files / "components/tokenizer").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (files / "model" / name).rename(files / "components/tokenizer" / name)
    (files / "MLmodel").write_text(
        "flavors: {transformers: {peft_adaptor: peft, model_binary: model, components: "
        f"[tokenizer], source_model_name: '{fabricate.checkpoint}'}}}}\n"
    )
    return files


def test_a_peft_model_comes_over_http_with_its_tokenizer(over_http: Fabricator) -> None:
    run_id = over_http.run("peft")
    model = over_http.logged_model(run_id, "final", peft_files(over_http))
    for uri in (f"runs:/{run_id}", f"models:/{model.model_id}"):
        source = find(uri, over_http)
        assert source.adapter_base == over_http.checkpoint
        ours = (source.path / "tokenizer.json").read_bytes()
        assert ours == (over_http.checkpoint / "tokenizer.json").read_bytes()
        assert (source.path / "adapter_model.safetensors").is_file()
    with pytest.raises(SourceError, match="tensors of modules that PEFT had wrapped, such as"):
        find(f"models:/{model.model_id}/model", over_http)


def test_the_files_of_a_deleted_logged_model_come_over_http(over_http: Fabricator) -> None:
    run_id, name = over_http.run("gone"), f"gone-{over_http.experiment}"
    model = over_http.logged_model(run_id, "final", over_http.checkpoint, "model")
    over_http.client.create_registered_model(name)
    over_http.client.create_model_version(name, model.model_uri, run_id, model_id=model.model_id)
    over_http.client.delete_logged_model(model.model_id)
    source = find(f"models:/{name}/1", over_http)
    assert source.sha256 == weights_sha256(over_http.checkpoint)
    assert (source.model_id, source.registered) == (None, f"{name}/1")
