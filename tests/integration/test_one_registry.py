"""Runs in one database, registered models in another: every command looks in the same registry."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tracking_case import Case, make_case, make_recipe

from mergeops.adoption import adopt
from mergeops.checkpoint import weights_sha256
from mergeops.progress import Progress
from mergeops.promotion.references import find_references
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources import RunTags, resolve_uri
from mergeops.store.connection import connect
from mergeops.tools import Tools


@dataclasses.dataclass
class TwoStores:
    """A registered trial, and clients that see one database only."""

    case: Case
    version: int
    runs: Any
    registry: Any


@pytest.fixture(params=["environment", "recipe"])
def stores(
    request: pytest.FixtureRequest,
    template_database: Path,
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TwoStores]:
    """A trial logged to one database and registered in the other, whichever way that is said."""
    import mlflow

    a, b = (f"sqlite:///{tmp_path}/{name}.db" for name in ("runs", "registry"))
    for uri in (a, b):
        shutil.copy(template_database, uri.removeprefix("sqlite:///"))
    registry_uri = b if request.param == "recipe" else None
    # MLflow sets it too, and this is what takes it away again.
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", b)
    if registry_uri is not None:
        monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", a)
    before = mlflow.get_tracking_uri()
    spec = TrackingSpec(
        uri=a, registry_uri=registry_uri, experiment="merges", registered_model="skills"
    )
    case = make_case(connect(spec), checkpoint)
    try:
        _, version = case.whole()
        clients = (mlflow.MlflowClient(uri, uri) for uri in (a, b))
        yield TwoStores(case, version, *clients)
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri("")


def test_a_trial_registers_in_the_registry(stores: TwoStores) -> None:
    assert [v.version for v in stores.registry.search_model_versions("name = 'skills'")] == [1]
    assert not stores.runs.search_registered_models()


def test_a_source_is_found_by_its_registered_name(stores: TwoStores, tmp_path: Path) -> None:
    source = resolve_uri(
        "models:/skills/1", cache_dir=tmp_path / "cache", tracking=stores.case.tracking.spec
    )
    assert source.sha256 == weights_sha256(stores.case.checkpoint)
    assert source.registered == "skills/1"


def test_adopted_checkpoints_are_registered_there(stores: TwoStores, tmp_path: Path) -> None:
    if stores.case.tracking.spec.registry_uri is not None:
        pytest.skip("adopt takes the registry from the environment")
    output = tmp_path / "output"
    shutil.copytree(stores.case.checkpoint, output / "checkpoint-4")
    client = stores.case.tracking.client
    experiment = client.create_experiment("trainings")
    run_id = client.create_run(experiment, run_name="math").info.run_id
    client.set_tag(run_id, RunTags.OUTPUT_DIR, str(output))
    (adopted,) = adopt("trainings", register="ingredients").adopted
    assert adopted.registered == "ingredients/1"
    (version,) = stores.registry.search_model_versions("name = 'ingredients'")
    assert version.source == f"models:/{adopted.model_id}"
    assert not stores.runs.search_registered_models()


def test_the_champion_is_a_reference_from_there(stores: TwoStores, tmp_path: Path) -> None:
    case, checkpoint = stores.case, str(stores.case.checkpoint)
    recipe = make_recipe(
        case.tracking.spec,
        base=checkpoint,
        sources={"math": {"uri": checkpoint, "weight": 0.5}},
        promote={"against": ["champion"]},
        output={"dir": str(tmp_path / "work")},
    )
    recipe = dataclasses.replace(recipe, tracking=case.tracking.spec)
    tools = Tools(recipe, Progress(quiet=True), tracking=case.tracking)
    (champion,) = find_references(tools, recipe, "skills", stores.version)
    assert champion.source.sha256 == weights_sha256(case.checkpoint)
    assert champion.dev is not None
