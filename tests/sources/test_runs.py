"""What runs:/ URIs mean, on runs as other trainers and older MLflow wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.training_runs import Fabricator, cut_short

from mergeops.errors import SourceError, TrackingError
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source


def find(uri: str, fabricate: Fabricator, path_map: dict[str, str] | None = None) -> Source:
    return resolve_uri(
        uri,
        cache_dir=fabricate.folder / "cache",
        tracking=TrackingSpec(uri=fabricate.uri),
        path_map=path_map,
    )


def test_mlflow_2_kept_checkpoints_among_the_runs_artifacts(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    for n in (2, 10):
        fabricate.save(fabricate.folder / f"2/checkpoint-{n}/artifacts/checkpoint-{n}")
    fabricate.client.log_artifacts(run_id, str(fabricate.folder / "2"))
    newest = find(f"runs:/{run_id}", fabricate)
    assert newest.path.parts[-3:] == ("checkpoint-10", "artifacts", "checkpoint-10")
    named = find(f"runs:/{run_id}/checkpoint-2", fabricate)
    assert named.path.name == "checkpoint-2"
    assert named.sha256 == newest.sha256
    by_path = find(f"runs:/{run_id}/checkpoint-2/artifacts/checkpoint-2", fabricate)
    assert by_path.path == named.path


def test_a_logged_output_directory_is_searched(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    fabricate.save(fabricate.folder / "out/checkpoint-7")
    fabricate.client.log_artifacts(run_id, str(fabricate.folder / "out"), "out")
    assert find(f"runs:/{run_id}", fabricate).path.name == "checkpoint-7"
    assert find(f"runs:/{run_id}/out/checkpoint-7", fabricate).path.name == "checkpoint-7"


def test_the_transformers_flavour_keeps_the_model_in_a_directory(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    model = fabricate.logged_model(run_id, "final", fabricate.checkpoint, "model")
    for uri in (f"runs:/{run_id}", f"runs:/{run_id}/final", f"runs:/{run_id}/final/model"):
        source = find(uri, fabricate)
        assert source.path.parts[-2:] == ("artifacts", "model")
        assert source.model_id == model.model_id


def test_the_tag_of_a_run_wins(fabricate: Fabricator) -> None:
    elsewhere = fabricate.save(fabricate.folder / "elsewhere/best")
    run_id = fabricate.run(tags={"mergeops.checkpoint_uri": str(elsewhere)})
    fabricate.logged_model(run_id, "final", fabricate.checkpoint, "model")
    assert find(f"runs:/{run_id}", fabricate).path == elsewhere
    assert find(f"runs:/{run_id}/best", fabricate).path == elsewhere


def test_a_tag_may_name_an_output_directory(fabricate: Fabricator) -> None:
    for n in (1, 3):
        fabricate.save(fabricate.folder / f"o/checkpoint-{n}")
    run_id = fabricate.run(tags={"mergeops.checkpoint_uri": str(fabricate.folder / "o")})
    assert find(f"runs:/{run_id}", fabricate).path.name == "checkpoint-3"


def test_a_pointer_that_somebody_set_is_the_last_resort(fabricate: Fabricator) -> None:
    elsewhere = fabricate.save(fabricate.folder / "elsewhere/checkpoint-8")
    run_id = fabricate.run(params={"output_dir": "/mnt/gone"})
    tags = {"mlflow.model.isExternal": "true", "mergeops.checkpoint_uri": str(elsewhere)}
    model = fabricate.client.create_logged_model(
        fabricate.experiment, "far", source_run_id=run_id, tags=tags
    )
    for uri in (f"runs:/{run_id}", f"runs:/{run_id}/checkpoint-8"):
        source = find(uri, fabricate)
        assert (source.path, source.model_id) == (elsewhere, model.model_id)


def test_an_upload_that_did_not_finish_is_passed_over(fabricate: Fabricator) -> None:
    output = fabricate.folder / "output"
    fabricate.save(output / "checkpoint-5")
    run_id = fabricate.run(params={"output_dir": str(output)})
    pending = fabricate.client.create_logged_model(
        fabricate.experiment, "checkpoint-9", source_run_id=run_id
    )
    assert find(f"runs:/{run_id}", fabricate).path == output / "checkpoint-5"
    with pytest.raises(SourceError, match="is PENDING, not READY: its upload did not finish"):
        find(f"models:/{pending.model_id}", fabricate)


def test_the_final_save_is_used_where_there_is_no_checkpoint(fabricate: Fabricator) -> None:
    output = fabricate.save(fabricate.folder / "output", lora=True)
    run_id = fabricate.run(params={"output_dir": str(output)})
    source = find(f"runs:/{run_id}", fabricate)
    assert (source.path, source.adapter_base) == (output, fabricate.checkpoint)


def test_torchtune_leaves_epochs(fabricate: Fabricator) -> None:
    output = fabricate.folder / "tune"
    for n in (0, 1):
        fabricate.save(output / f"epoch_{n}")
    run_id = fabricate.run(params={"output_dir": str(output)})
    assert find(f"runs:/{run_id}", fabricate).path == output / "epoch_1"
    assert find(f"runs:/{run_id}/epoch_0", fabricate).path == output / "epoch_0"


def test_nemo_names_its_directory_otherwise(fabricate: Fabricator) -> None:
    fabricate.save(fabricate.folder / "nemo/checkpoint-1")
    run_id = fabricate.run(params={"checkpoint.checkpoint_dir": str(fabricate.folder / "nemo")})
    assert find(f"runs:/{run_id}", fabricate).path.name == "checkpoint-1"


def test_a_logged_config_tells_the_output_directory(fabricate: Fabricator) -> None:
    fabricate.save(fabricate.folder / "axolotl-out/checkpoint-1")
    run_id = fabricate.run()
    text = f"base_model: org/base\noutput_dir: {fabricate.folder}/axolotl-out\n"
    fabricate.client.log_text(run_id, text, "axolotl_config_x1y2.yml")
    assert find(f"runs:/{run_id}", fabricate).path.name == "checkpoint-1"


def test_a_relative_output_directory_is_also_looked_for_beside_the_database(
    fabricate: Fabricator,
) -> None:
    beside = Path(fabricate.uri.removeprefix("sqlite:///")).parent
    fabricate.save(beside / "out/checkpoint-1")
    run_id = fabricate.run(params={"output_dir": "./out"})
    assert find(f"runs:/{run_id}", fabricate).path == beside / "out/checkpoint-1"


def test_moved_storage_is_found_through_the_path_map(fabricate: Fabricator) -> None:
    fabricate.save(fabricate.folder / "now/run/checkpoint-1")
    run_id = fabricate.run(params={"output_dir": "/mnt/old/run"})
    with pytest.raises(
        SourceError, match="param output_dir is /mnt/old/run, which is empty or not"
    ):
        find(f"runs:/{run_id}", fabricate)
    found = find(f"runs:/{run_id}", fabricate, {"/mnt/old": str(fabricate.folder / "now")})
    assert found.path == fabricate.folder / "now/run/checkpoint-1"


def test_moved_artifacts_are_found_through_the_path_map(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    fabricate.logged_model(run_id, "final", fabricate.checkpoint, "model")
    old, new = fabricate.folder / "artifacts", fabricate.folder / "moved"
    shutil.move(old, new)
    assert find(f"runs:/{run_id}", fabricate, {str(old): str(new)}).path.is_relative_to(new)


def test_a_directory_that_a_later_run_wrote_again_is_refused(fabricate: Fabricator) -> None:
    output = fabricate.folder / "output"
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    fabricate.save(output / "checkpoint-2", state={"log_history": history, "global_step": 2})
    params = {"output_dir": str(output)}
    first = fabricate.run("first", params=params, metrics={"loss": [(1, 2.5), (2, 1.9)]})
    second = fabricate.run("second", params=params, metrics={"loss": [(1, 2.0), (2, 1.5)]})
    assert find(f"runs:/{second}", fabricate).path == output / "checkpoint-2"
    with pytest.raises(SourceError, match="checkpoint-2 was written by another run: its trainer_s"):
        find(f"runs:/{first}", fabricate)


def test_a_run_that_was_resumed_keeps_its_own_checkpoints_only(fabricate: Fabricator) -> None:
    output = fabricate.folder / "output"
    history = [{"step": n, "loss": 3.0 - n / 10} for n in range(1, 5)]
    for n in (2, 4):
        state = {"log_history": history[:n], "global_step": n}
        fabricate.save(output / f"checkpoint-{n}", state=state)
    losses = [(entry["step"], entry["loss"]) for entry in history]
    params = {"output_dir": str(output)}
    crashed = fabricate.run(params=params, metrics={"loss": losses[:2]}, status="FAILED")
    resumed = fabricate.run(params=params, metrics={"loss": losses[2:]})
    assert find(f"runs:/{crashed}", fabricate).path == output / "checkpoint-2"
    assert find(f"runs:/{resumed}", fabricate).path == output / "checkpoint-4"


def test_nan_losses_do_not_make_a_run_a_stranger(fabricate: Fabricator) -> None:
    output = fabricate.folder / "output"
    nan = float("nan")
    state = {"log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": nan}]}
    fabricate.save(output / "checkpoint-2", state=state)
    metrics = {"loss": [(1, 2.0), (2, nan)]}
    run_id = fabricate.run(params={"output_dir": str(output)}, metrics=metrics, status="FAILED")
    assert find(f"runs:/{run_id}", fabricate).path == output / "checkpoint-2"


def test_the_best_checkpoint_that_was_deleted_gives_way_to_the_newest(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "output"
    state = {"best_model_checkpoint": "/trainer/output/checkpoint-1"}
    for n in (2, 3):
        fabricate.save(output / f"checkpoint-{n}", state=state)
    run_id = fabricate.run(params={"output_dir": str(output)})
    assert find(f"runs:/{run_id}", fabricate).path == output / "checkpoint-3"


def test_a_named_checkpoint_that_is_cut_off_says_so(fabricate: Fabricator) -> None:
    checkpoint = fabricate.save(fabricate.folder / "output/checkpoint-3")
    cut_short(checkpoint / "model.safetensors")
    run_id = fabricate.run(params={"output_dir": str(checkpoint.parent)})
    with pytest.raises(SourceError, match=r"runs:/.*/checkpoint-3: .*truncated"):
        find(f"runs:/{run_id}/checkpoint-3", fabricate)
    with pytest.raises(SourceError, match=r"runs:/\w+: .*truncated"):
        find(f"runs:/{run_id}", fabricate)


def test_an_unknown_name_is_answered_with_the_known_ones(fabricate: Fabricator) -> None:
    fabricate.save(fabricate.folder / "output/checkpoint-3")
    run_id = fabricate.run(params={"output_dir": str(fabricate.folder / "output")})
    wanted = "has no checkpoint or artifact 'checkpoint-4'; it has checkpoint-3"
    with pytest.raises(SourceError, match=wanted):
        find(f"runs:/{run_id}/checkpoint-4", fabricate)


def test_an_artifact_path_that_is_no_checkpoint_says_what_is_there(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    fabricate.client.log_text(run_id, "x", "plots/loss.txt")
    with pytest.raises(SourceError, match=r"plots holds no checkpoint.*it has loss.txt"):
        find(f"runs:/{run_id}/plots", fabricate)


def test_a_run_that_left_nothing_says_what_to_set(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    with pytest.raises(SourceError, match="left no checkpoint: .*tag mergeops.checkpoint_uri"):
        find(f"runs:/{run_id}", fabricate)


def test_a_run_that_was_pushed_to_the_hub_says_where(fabricate: Fabricator) -> None:
    run_id = fabricate.run(params={"hub_model_id": "org/tuned"})
    with pytest.raises(SourceError, match="it was pushed to hf://org/tuned"):
        find(f"runs:/{run_id}", fabricate)


def test_an_unknown_run_is_named_with_the_server(fabricate: Fabricator) -> None:
    with pytest.raises(SourceError, match="there is no run abc at sqlite:///"):
        find("runs:/abc", fabricate)


def test_a_deleted_run_says_how_to_restore_it(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    fabricate.client.delete_run(run_id)
    with pytest.raises(SourceError, match=f"is deleted in MLflow; restore .*--run-id {run_id}"):
        find(f"runs:/{run_id}", fabricate)


@pytest.mark.parametrize("path", ["../../secret", "a/../../b", "a\\b"])
def test_a_path_cannot_leave_the_run(path: str, fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    with pytest.raises(SourceError, match="leaves its directory; only paths inside are allowed"):
        find(f"runs:/{run_id}/{path}", fabricate)


def test_a_link_cannot_lead_out_of_the_artifacts(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    root = fabricate.folder / "artifacts" / run_id / "artifacts"
    root.mkdir(parents=True)
    (root / "model").symlink_to(fabricate.checkpoint)
    with pytest.raises(SourceError, match=r"model leads out of .*/artifacts; only paths inside"):
        find(f"runs:/{run_id}/model", fabricate)


def test_a_uri_without_a_run_is_refused(fabricate: Fabricator) -> None:
    with pytest.raises(SourceError, match="runs:/ names no run; write runs:/RUN_ID"):
        find("runs:/", fabricate)


def test_a_missing_database_is_named_and_not_created(tmp_path: Path) -> None:
    tracking = TrackingSpec(uri=f"sqlite:///{tmp_path}/gone.db")
    with pytest.raises(TrackingError, match=r"no MLflow database .*gone.db; set tracking.uri or"):
        resolve_uri("runs:/abc", cache_dir=tmp_path, tracking=tracking)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_an_error_in_time(tmp_path: Path) -> None:
    tracking = TrackingSpec(uri="http://127.0.0.1:9", timeout_s=2)
    with pytest.raises(TrackingError, match="cannot reach the MLflow server at http://127.0.0.1:9"):
        resolve_uri("runs:/abc", cache_dir=tmp_path, tracking=tracking)
