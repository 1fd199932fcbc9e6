"""The merge as an MLflow model: whole, loadable, and without a second copy of its weights."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from support.tracking_case import Case

from mergeops.errors import TrackingError
from mergeops.store import packaging
from mergeops.store.artifacts import local_folder
from mergeops.store.packaging import environment_files, layout


def stored(case: Case, model_id: str) -> Path:
    folder = local_folder(case.tracking.client.get_logged_model(model_id).artifact_location)
    assert folder is not None
    return folder


def test_transformers_and_pyfunc_load_it_and_generate(case: Case) -> None:
    import mlflow

    _, version = case.whole()
    pipeline = mlflow.transformers.load_model(f"models:/skills/{version}")
    assert pipeline("12 + 3 =", max_new_tokens=3)[0]["generated_text"].startswith("12 + 3 =")
    model = mlflow.pyfunc.load_model(f"models:/skills/{version}")
    (answer,) = model.predict(["12 + 3 ="])
    assert isinstance(answer, str)


def test_its_model_folder_is_the_checkpoint_as_it_was(case: Case) -> None:
    import mlflow
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, version = case.whole()
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/skills/{version}/model"))
    for path in case.checkpoint.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)


def test_weights_on_a_local_store_are_the_same_bytes_on_disk(case: Case) -> None:
    with case.trial() as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
    folder = stored(case, log.model_id) / "model"
    for path in case.checkpoint.iterdir():
        same = path.samefile(folder / path.name)
        assert same == (path.suffix == ".safetensors")


def test_weights_are_copied_where_they_cannot_be_linked(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(packaging.os, "link", refuse)
    with case.trial() as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
    copy = stored(case, log.model_id) / "model" / "model.safetensors"
    assert copy.read_bytes() == (case.checkpoint / "model.safetensors").read_bytes()
    assert not list(copy.parent.glob(".*"))


def test_nothing_is_left_beside_the_checkpoint(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "merges" / "one"
    shutil.copytree(case.checkpoint, folder)
    before = sorted(folder.parent.rglob("*"))
    dataclasses.replace(case, checkpoint=folder).whole()
    assert sorted(folder.parent.rglob("*")) == before


def test_the_description_names_architecture_environment_and_signature(case: Case) -> None:
    with case.trial() as log:
        log.log_model(case.checkpoint, weights_sha256="0" * 64)
    folder = stored(case, log.model_id)
    description = yaml.safe_load((folder / "MLmodel").read_text())
    flavor = description["flavors"]["transformers"]
    assert flavor["pipeline_model_type"] == "LlamaForCausalLM"
    assert flavor["torch_dtype"] == "torch.float32"
    assert description["model_id"] == log.model_id
    assert description["run_id"] == log.run_id
    assert description["signature"]["inputs"]
    assert description["model_size_bytes"] >= 40_000
    assert set(environment_files()) <= {path.name for path in folder.iterdir()}


def test_the_environment_pins_versions_that_an_index_has() -> None:
    files = environment_files()
    assert "+" not in files["requirements.txt"]
    pins = files["requirements.txt"].split()
    assert {pin.split("==")[0] for pin in pins} >= {"mlflow", "torch", "transformers"}
    conda = yaml.safe_load(files["conda.yaml"])
    assert conda["dependencies"][-1] == {"pip": pins}
    assert yaml.safe_load(files["python_env.yaml"])["dependencies"] == ["-r requirements.txt"]


def test_progress_goes_up_to_all_bytes(case: Case) -> None:
    seen: list[tuple[int, int]] = []
    with case.trial() as log:
        log.log_model(
            case.checkpoint,
            weights_sha256="0" * 64,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_file_that_arrived_short_keeps_the_model_from_being_ready(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = packaging._put

    def cut_short(tracking: object, local: Path, path: Path, name: str) -> None:
        send(tracking, local, path, name)
        if name == "model/config.json":
            (local / name).write_text("{}")

    with monkeypatch.context() as patched:
        patched.setattr(packaging, "_put", cut_short)
        with (
            pytest.raises(
                TrackingError, match=r"model/config.json of .* differs in MLflow's store"
            ),
            case.trial() as log,
        ):
            log.log_model(case.checkpoint, weights_sha256="0" * 64)
    client = case.tracking.client
    assert str(client.get_logged_model(log.model_id).status) == "FAILED"
    assert client.get_run(log.run_id).info.status == "FAILED"
    case.whole()
    assert str(client.get_logged_model(log.model_id).status) == "READY"


def test_a_copy_with_other_bytes_of_the_same_size_is_found_by_its_hash(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = packaging._put

    def garble(tracking: object, local: Path, path: Path, name: str) -> None:
        send(tracking, local, path, name)
        if name == "model/model.safetensors":
            (local / name).unlink()
            (local / name).write_bytes(b"\0" * path.stat().st_size)

    with monkeypatch.context() as patched:
        patched.setattr(packaging, "_put", garble)
        with (
            pytest.raises(TrackingError, match=r"model.safetensors .* differs in MLflow's store"),
            case.trial() as log,
        ):
            log.log_model(case.checkpoint, weights_sha256="0" * 64)
    case.whole()
    weights = stored(case, log.model_id) / "model" / "model.safetensors"
    assert weights.samefile(case.checkpoint / "model.safetensors")


def test_a_directory_that_is_no_checkpoint_is_refused(case: Case, tmp_path: Path) -> None:
    with (
        pytest.raises(TrackingError, match="has no readable config.json"),
        case.trial() as log,
    ):
        log.log_model(tmp_path, weights_sha256="0" * 64)


def test_hidden_files_stay_at_home_and_sub_directories_go_along(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(case.checkpoint, folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    (folder / "chat").mkdir()
    (folder / "chat" / "tool.jinja").write_text("y")
    description = tmp_path / "description"
    description.mkdir()
    names = set(layout(folder, description))
    assert "model/chat/tool.jinja" in names
    assert not any(".cache" in name for name in names)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///data/a%20b", "/data/a b"),
        ("/data/x", "/data/x"),
        ("s3://bucket/x", None),
        ("mlflow-artifacts:/1/models/m/artifacts", None),
        ("file://elsewhere/data", None),
    ],
)
def test_only_a_place_on_this_machine_is_local(location: str, path: str | None) -> None:
    assert local_folder(location) == (Path(path) if path else None)
