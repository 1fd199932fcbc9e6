"""What models:/ URIs mean: versions, aliases, copies, LoggedModels, pointers to elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import Fabricator

from mergeops.errors import SourceError
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source


def find(uri: str, fabricate: Fabricator) -> Source:
    tracking = TrackingSpec(uri=fabricate.uri)
    return resolve_uri(uri, cache_dir=fabricate.folder / "cache", tracking=tracking)


@pytest.fixture
def default_store(fabricate: Fabricator) -> Any:
    """Creating versions in a database asks the process's own store for the LoggedModel."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(fabricate.uri)
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def model(fabricate: Fabricator, default_store: None) -> Any:
    """``skills`` version 1 of a LoggedModel in the transformers flavour's layout."""
    run_id = fabricate.run()
    model = fabricate.logged_model(run_id, "final", fabricate.checkpoint, "model")
    fabricate.client.create_registered_model("skills")
    fabricate.client.create_model_version("skills", model.model_uri, run_id)
    return model


def test_a_version_an_alias_and_the_model_itself_are_one_checkpoint(
    fabricate: Fabricator, model: Any
) -> None:
    fabricate.client.set_registered_model_alias("skills", "champion", "1")
    uris = {
        "models:/skills/1": "skills/1",
        "models:/skills@champion": "skills/1",
        "models:/skills/latest": "skills/1",
        "models:/skills/1/model": "skills/1",
        "models:/skills@champion/model": "skills/1",
        f"models:/{model.model_id}": None,
        f"models:/{model.model_id}/model": None,
    }
    for uri, registered in uris.items():
        source = find(uri, fabricate)
        assert source.path.parts[-3:] == (model.model_id, "artifacts", "model")
        assert source.registered == registered
        assert (source.run_id, source.model_id) == (model.source_run_id, model.model_id)


def test_a_stage_stands_for_its_newest_version_as_in_mlflow(
    fabricate: Fabricator, model: Any
) -> None:
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    folder = fabricate.save(fabricate.folder / "artifacts" / "other")
    client = fabricate.client
    for place in (str(folder), model.model_uri):
        client.create_model_version("skills", place, model.source_run_id)
    for version, stage in (("1", "Production"), ("2", "Production"), ("3", "Staging")):
        client.transition_model_version_stage("skills", version, stage)
    for stage in ("Production", "production", "Staging", "latest"):
        _, theirs = get_model_name_and_version(client, f"models:/skills/{stage}")
        assert find(f"models:/skills/{stage}", fabricate).registered == f"skills/{theirs}"


def test_a_local_store_is_read_where_it_is(fabricate: Fabricator, model: Any) -> None:
    assert find("models:/skills/1", fabricate).path.is_relative_to(fabricate.folder / "artifacts")
    assert not (fabricate.folder / "cache" / "downloads").exists()


def test_a_copied_version_leads_to_the_original(fabricate: Fabricator, model: Any) -> None:
    fabricate.client.copy_model_version("models:/skills/1", "prod")
    source = find("models:/prod/1", fabricate)
    assert source.model_id == model.model_id
    assert source.registered == "prod/1"


def test_versions_may_point_at_a_run_a_directory_or_nothing(
    fabricate: Fabricator, model: Any
) -> None:
    run_id = fabricate.run()
    folder = fabricate.save(fabricate.folder / "artifacts" / run_id / "artifacts" / "ck")
    client = fabricate.client
    client.create_model_version("skills", f"runs:/{run_id}/ck", run_id)
    client.create_model_version("skills", str(folder), run_id)
    client.create_model_version("skills", str(fabricate.folder / "gone"), run_id)
    for version in (2, 3):
        source = find(f"models:/skills/{version}", fabricate)
        assert (source.path, source.run_id) == (folder, run_id)
    with pytest.raises(SourceError, match="models:/skills/4: .*gone is empty or does not exist"):
        find("models:/skills/4", fabricate)


def test_an_external_model_without_a_pointer_says_which_tag_to_set(fabricate: Fabricator) -> None:
    tags = {"mlflow.model.isExternal": "true"}
    model = fabricate.client.create_logged_model(fabricate.experiment, "far", tags=tags)
    fabricate.client.finalize_logged_model(model.model_id, "READY")
    uri = f"models:/{model.model_id}"
    with pytest.raises(SourceError, match="external model.*set its tag mergeops.checkpoint_uri"):
        find(uri, fabricate)
    pointer = {"mergeops.checkpoint_uri": str(fabricate.checkpoint)}
    fabricate.client.set_logged_model_tags(model.model_id, pointer)
    assert find(uri, fabricate).path == fabricate.checkpoint


def test_a_model_with_several_checkpoints_asks_for_one(
    fabricate: Fabricator, tmp_path: Path
) -> None:
    for n in (1, 2):
        fabricate.save(tmp_path / f"two/artifacts/checkpoint-{n}")
    model = fabricate.logged_model(fabricate.run(), "two", tmp_path / "two")
    with pytest.raises(SourceError, match="several checkpoints; name one: .*checkpoint-1, .*-2$"):
        find(f"models:/{model.model_id}", fabricate)
    named = find(f"models:/{model.model_id}/artifacts/checkpoint-2", fabricate)
    assert named.path.name == "checkpoint-2"


def test_an_adapter_in_the_peft_flavour_is_found(fabricate: Fabricator) -> None:
    model = fabricate.logged_model(fabricate.run(), "lora", fabricate.adapter, "peft")
    source = find(f"models:/{model.model_id}", fabricate)
    assert source.path.name == "peft"
    assert source.adapter_base == fabricate.checkpoint


def test_an_index_that_points_outside_is_refused(fabricate: Fabricator, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"a": "../../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = fabricate.logged_model(fabricate.run(), "evil", folder)
    with pytest.raises(SourceError, match="only a file name inside the directory is allowed"):
        find(f"models:/{model.model_id}", fabricate)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/skills/7", "skills has no version 7; its versions: 1"),
        ("models:/skills@best", "skills has no alias 'best'; its aliases: none"),
        ("models:/skill/1", "there is no registered model 'skill' at sqlite:///"),
        ("models:/skill@champion", "there is no registered model 'skill' at sqlite:///"),
        ("models:/skills", "is no model URI; write models:/NAME/VERSION, models:/NAME@ALIAS"),
        ("models:/skills/Produce", "is no model URI; write models:/NAME/VERSION"),
        ("models:/skills/staging", "skills has no version in stage Staging; its versions: 1"),
        ("models:/", "is no model URI"),
        (f"models:/m-{'0' * 32}", "there is no LoggedModel m-0000"),
        ("models:/skills/1/../../x", "leaves its directory"),
    ],
)
def test_what_is_not_there_is_named(
    uri: str, message: str, fabricate: Fabricator, model: Any
) -> None:
    with pytest.raises(SourceError, match=message):
        find(uri, fabricate)
