"""Runs that transformers' Trainer and MLflowCallback really wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import EXPERIMENT, Trained, discover

from mergeops.adoption.adoption import Adoption, adopt
from mergeops.adoption.found import FoundRun
from mergeops.checkpoint import weights_sha256
from mergeops.recipe.recipe import Recipe
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve, resolve_uri


@pytest.fixture(scope="module")
def found(trained: Trained) -> dict[str, FoundRun]:
    return {one.run_name: one for one in discover(EXPERIMENT, tracking_uri=trained.uri)}


@pytest.fixture(scope="module")
def before(trained: Trained) -> dict[str, Any]:
    return snapshot(trained)


@pytest.fixture(scope="module")
def adopted(trained: Trained, before: dict[str, Any]) -> Iterator[Adoption]:
    yield adopt(EXPERIMENT, tracking_uri=trained.uri, register="ingredients")


def snapshot(trained: Trained) -> dict[str, Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=trained.uri)
    infos = (client.get_run(run_id).info for run_id in trained.runs.values())
    return {info.run_id: (info.status, info.start_time, info.end_time) for info in infos}


def test_every_run_left_something_whatever_became_of_it(
    found: dict[str, FoundRun], trained: Trained
) -> None:
    assert {name: (f.status, f.kind, f.step) for name, f in found.items()} == {
        "math lr=0.01": ("FINISHED", "full", 2),
        "lora": ("FINISHED", "lora", 4),
        "lora-plain": ("FINISHED", "lora", 4),
        "diverged": ("FAILED", "full", 2),
        "killed": ("KILLED", "full", 4),
        "cut": ("FINISHED", "full", 2),
    }
    assert [f.problem for f in found.values()] == [None] * 6
    for name, one in found.items():
        assert one.run_id == trained.runs[name]
        assert one.uri == f"runs:/{one.run_id}/checkpoint-{one.step}"


def test_the_base_and_the_architecture_are_the_same_for_full_and_lora(
    found: dict[str, FoundRun], trained: Trained
) -> None:
    for one in found.values():
        assert one.base == str(trained.base)
        assert one.architectures == ("LlamaForCausalLM",)
        assert one.shape["vocab_size"] == 128
        assert one.shape["num_hidden_layers"] == 2
    assert found["lora"].found_by["base"] == "adapter_config.json"
    assert found["killed"].found_by["base"] == "param _name_or_path"


def test_the_trainer_state_names_the_best_checkpoint(found: dict[str, FoundRun]) -> None:
    # Every step makes its evaluation worse, so the first of two checkpoints is the best.
    one = found["math lr=0.01"]
    assert one.found_by["checkpoint"].endswith("; best by trainer_state.json of checkpoint-4")
    assert one.metrics["eval_loss"] == one.metrics["eval_loss_best"] < one.metrics["eval_loss_last"]


def test_a_cut_off_checkpoint_is_passed_over_and_named(found: dict[str, FoundRun]) -> None:
    (skipped,) = found["cut"].skipped
    assert "checkpoint-4/model.safetensors" in skipped
    assert "truncated" in skipped
    assert found["cut"].metrics["eval_loss"] != found["cut"].metrics["eval_loss_last"]


def test_where_a_checkpoint_was_found_is_said(found: dict[str, FoundRun]) -> None:
    assert found["lora"].found_by["checkpoint"].startswith(f"LoggedModel {found['lora'].model_id};")
    assert found["lora-plain"].found_by["checkpoint"] == (
        "param output_dir; lowest eval_loss in trainer_state.json"
    )


def test_sizes_are_those_of_the_safetensors_files(
    found: dict[str, FoundRun], trained: Trained
) -> None:
    file = trained.outputs / "killed" / "checkpoint-4" / "model.safetensors"
    assert found["killed"].size_bytes == file.stat().st_size


def test_progress_counts_the_runs(trained: Trained) -> None:
    ticks: list[tuple[int, int]] = []
    discover(
        EXPERIMENT,
        tracking_uri=trained.uri,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks == [(n, 6) for n in range(1, 7)]


def test_a_filter_leaves_runs_out(trained: Trained) -> None:
    only = discover(
        EXPERIMENT, filter_string="attributes.status = 'KILLED'", tracking_uri=trained.uri
    )
    assert [one.run_name for one in only] == ["killed"]


def test_adoption_leaves_the_runs_as_they_were(
    trained: Trained, before: dict[str, Any], adopted: Adoption
) -> None:
    assert snapshot(trained) == before


def test_an_adopted_model_is_an_output_of_its_run_and_copies_nothing(
    trained: Trained, adopted: Adoption
) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=trained.uri)
    killed = next(a for a in adopted.adopted if a.found.run_name == "killed")
    assert killed.is_new
    outputs = client.get_run(killed.found.run_id).outputs.model_outputs
    assert [(o.model_id, o.step) for o in outputs] == [(killed.model_id, 4)]
    model = client.get_logged_model(killed.model_id)
    assert str(model.status) == "READY"
    assert model.source_run_id == killed.found.run_id
    assert model.tags["mergeops.role"] == "source"
    assert model.tags["mergeops.kind"] == "full"
    assert model.tags["mergeops.step"] == "4"
    assert model.tags["mergeops.base"] == str(trained.base)
    assert model.tags["mergeops.checkpoint_uri"] == str(trained.outputs / "killed/checkpoint-4")
    files = [p for p in Path(model.artifact_location[len("file://") :]).rglob("*") if p.is_file()]
    assert [p.name for p in files] == ["MLmodel"]


def test_a_checkpoint_that_the_trainer_logged_is_tagged_not_made_again(
    trained: Trained, adopted: Adoption
) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=trained.uri)
    lora = next(a for a in adopted.adopted if a.found.run_name == "lora")
    assert not lora.is_new
    model = client.get_logged_model(lora.model_id)
    assert model.name == "checkpoint-4"
    assert model.tags["mergeops.role"] == "source"
    assert "mergeops.checkpoint_uri" not in model.tags
    assert len(client.get_run(lora.found.run_id).outputs.model_outputs) == 1


def test_adopting_twice_changes_nothing(trained: Trained, adopted: Adoption) -> None:
    again = adopt(EXPERIMENT, tracking_uri=trained.uri, register="ingredients")
    assert not any(a.is_new for a in again.adopted)
    assert [(a.model_id, a.registered) for a in again.adopted] == [
        (a.model_id, a.registered) for a in adopted.adopted
    ]
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=trained.uri)
    assert len(client.search_model_versions("name = 'ingredients'")) == 6


def test_registered_versions_are_ingredients_with_lineage(
    trained: Trained, adopted: Adoption
) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=trained.uri)
    for one in adopted.adopted:
        name, version = str(one.registered).split("/")
        found = client.get_model_version(name, version)
        assert found.source == f"models:/{one.model_id}"
        assert found.run_id == one.found.run_id
        assert found.tags["mergeops.role"] == "source"
        assert found.tags["mergeops.status"] == "ingredient"
        tag = client.get_logged_model(one.model_id).tags["mlflow.modelVersions"]
        assert f'"version": {version}' in tag


def test_a_dry_run_writes_nothing(trained: Trained, adopted: Adoption) -> None:
    dry = adopt(EXPERIMENT, tracking_uri=trained.uri, register="others", dry_run=True)
    assert [(a.model_id, a.registered) for a in dry.adopted] == [(None, None)] * 6
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=trained.uri)
    assert [m.name for m in client.search_registered_models()] == ["ingredients"]


def test_rows_hold_everything_that_a_table_shows(adopted: Adoption) -> None:
    import json

    rows = {row["run_name"]: row for row in json.loads(json.dumps(adopted.rows()))}
    assert rows["killed"]["group"] == 0
    assert rows["killed"]["not_with_the_largest"] is None
    assert rows["killed"]["registered"].startswith("ingredients/")
    assert rows["killed"]["architectures"] == ["LlamaForCausalLM"]
    assert rows["diverged"]["status"] == "FAILED"


@pytest.mark.parametrize(
    "name", ["math lr=0.01", "lora", "lora-plain", "diverged", "killed", "cut"]
)
def test_the_run_its_model_and_its_version_lead_to_the_same_bytes(
    name: str, trained: Trained, adopted: Adoption, tmp_path: Path
) -> None:
    one = next(a for a in adopted.adopted if a.found.run_name == name)
    uris = (
        f"runs:/{one.found.run_id}",
        str(one.found.uri),
        f"models:/{one.model_id}",
        f"models:/{one.registered}",
    )
    sources = [
        resolve_uri(uri, cache_dir=tmp_path, tracking=TrackingSpec(uri=trained.uri)) for uri in uris
    ]
    for source in sources:
        assert source.path == Path(str(one.found.checkpoint))
        assert source.sha256 == sources[0].sha256
        assert (source.run_id, source.model_id) == (one.found.run_id, one.model_id)
        assert source.adapter_base == (trained.base if one.found.kind == "lora" else None)
    assert [source.registered for source in sources] == [None, None, None, one.registered]


def test_a_recipe_of_runs_resolves_with_each_uri_hashed_once(
    trained: Trained, tmp_path: Path
) -> None:
    uri = f"runs:/{trained.runs['killed']}/checkpoint-2"
    recipe = Recipe.from_dict(
        {
            "method": "linear",
            "base": str(trained.base),
            "sources": {"a": uri, "b": {"uri": uri}, "lora": f"runs:/{trained.runs['lora']}"},
            "tracking": {"uri": trained.uri},
        }
    )
    hashed: list[str] = []
    resolved = resolve(
        recipe,
        cache_dir=tmp_path,
        progress=lambda what, done, total: hashed.append(what) if done == total else None,
    )
    assert list(resolved.sources) == ["a", "b", "lora"]
    assert resolved.base is not None
    assert (resolved.base.name, resolved.base.path) == ("base", trained.base)
    assert resolved.base.sha256 == weights_sha256(trained.base)
    assert resolved.sources["a"].path == trained.outputs / "killed" / "checkpoint-2"
    assert resolved.sources["a"].sha256 == resolved.sources["b"].sha256
    assert resolved.sources["lora"].adapter_base == trained.base
    assert hashed == ["hashing base", "hashing a", "hashing lora"]


def test_runs_are_inspected_as_they_are_merged(trained: Trained, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from mergeops.cli.main import cli

    words = [f"sources.{n}.uri=runs:/{trained.runs[n]}" for n in ("killed", "lora")]
    words += [f"tracking.uri={trained.uri}", f"output.dir={tmp_path}", "--json", "-q"]
    done = CliRunner().invoke(cli, ["inspect", *words], catch_exceptions=False)
    seen = json.loads(done.stdout)
    assert (seen["base"], seen["base_from"]) == (str(trained.base), "adapters")
    kinds = {one["name"]: (one["kind"], one["run_id"]) for one in seen["sources"]}
    assert kinds == {
        "killed": ("full", trained.runs["killed"]),
        "lora": ("lora", trained.runs["lora"]),
    }
    # The adapter touches the query projections alone.
    assert seen["total"]["changed"]["killed"] > 0.8 > seen["total"]["changed"]["lora"] > 0
