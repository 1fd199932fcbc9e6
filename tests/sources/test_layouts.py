"""Layouts of trainers' output directories, and shards that are named as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.training_runs import Fabricator, discover

from mergeops.adoption.found import FoundRun
from mergeops.errors import SourceError
from mergeops.recipe.settings import TrackingSpec
from mergeops.recover import recover
from mergeops.sources import saves
from mergeops.sources.remote.directory import LocalDirectory
from mergeops.sources.resolution import resolve_uri
from mergeops.sources.source import Source

BASE = "model.pretrained_model_name_or_path"


def find(uri: str, fabricate: Fabricator) -> Source:
    tracking = TrackingSpec(uri=fabricate.uri)
    return resolve_uri(uri, cache_dir=fabricate.folder / "cache", tracking=tracking)


def only(fabricate: Fabricator) -> FoundRun:
    (found,) = discover("old", tracking_uri=fabricate.uri)
    return found


@pytest.mark.parametrize(
    ("inner", "lora"), [("model/consolidated", False), ("model", True), ("model", False)]
)
def test_nemo_automodel_saves_models_two_directories_deep(
    inner: str, lora: bool, fabricate: Fabricator
) -> None:
    output = fabricate.folder / "checkpoints"
    for step in (9, 19, 100):
        fabricate.save(output / f"epoch_0_step_{step}" / inner, lora=lora)
        (output / f"epoch_0_step_{step}/optim").mkdir()
    (output / "LATEST").symlink_to("epoch_0_step_100")
    params = {"checkpoint.checkpoint_dir": str(output), BASE: "org/base"}
    run_id = fabricate.run(params=params)
    one = only(fabricate)
    assert one.checkpoint == str(output / "epoch_0_step_100" / inner)
    assert (one.step, one.kind) == (100, "lora" if lora else "full")
    assert one.checkpoints == ("epoch_0_step_100", "epoch_0_step_19", "epoch_0_step_9")
    assert one.uri == f"runs:/{run_id}/epoch_0_step_100"
    assert find(str(one.uri), fabricate).path == Path(str(one.checkpoint))
    named = find(f"runs:/{run_id}/epoch_0_step_9", fabricate)
    assert named.path == output / "epoch_0_step_9" / inner


def test_automodels_link_to_the_lowest_validation_loss_is_its_best(fabricate: Fabricator) -> None:
    output = fabricate.folder / "checkpoints"
    for step in (9, 19):
        fabricate.save(output / f"epoch_0_step_{step}/model", lora=True)
    (output / "LATEST").symlink_to("epoch_0_step_19")
    (output / "LOWEST_VAL").symlink_to("epoch_0_step_9")
    fabricate.run(params={"checkpoint.checkpoint_dir": str(output)})
    one = only(fabricate)
    assert (one.step, one.checkpoints) == (9, ("epoch_0_step_19", "epoch_0_step_9"))


def test_the_lowest_validation_loss_tells_the_best_of_automodels(fabricate: Fabricator) -> None:
    output = fabricate.folder / "checkpoints"
    for step in (9, 19):
        fabricate.save(output / f"epoch_0_step_{step}/model/consolidated")
    fabricate.run(
        params={"checkpoint.checkpoint_dir": str(output)},
        metrics={"val_loss": [(9, 1.0), (19, 2.0)]},
    )
    one = only(fabricate)
    assert (one.step, one.metrics["val_loss"]) == (9, 1.0)


@pytest.mark.parametrize(
    ("params", "metrics", "best"),
    [
        ({"metric_for_best_model": "accuracy", "greater_is_better": "True"}, {2: 0.7, 4: 0.6}, 2),
        ({"metric_for_best_model": "eval_accuracy"}, {2: 0.6, 4: 0.7}, 4),
        ({"metric_for_best_model": "eval_accuracy"}, {2: 0.7, 4: 0.6}, 2),
        ({"metric_for_best_model": "wer", "greater_is_better": "False"}, {2: 0.1, 4: 0.2}, 2),
    ],
)
def test_the_best_checkpoint_is_the_best_by_the_runs_own_metric(
    params: dict[str, str], metrics: dict[int, float], best: int, fabricate: Fabricator
) -> None:
    name = "eval_" + params["metric_for_best_model"].removeprefix("eval_")
    # The loss says the contrary.
    history = [{"step": s, name: v, "eval_loss": abs(s - best)} for s, v in metrics.items()]
    history = [entry | {"eval_loss": -float(entry["eval_loss"])} for entry in history]
    output = fabricate.folder / "out"
    for step in metrics:
        fabricate.save(output / f"checkpoint-{step}", state={"log_history": history})
    fabricate.run(params=params | {"output_dir": str(output)})
    one = only(fabricate)
    assert (one.step, one.metrics[name]) == (best, metrics[best])


def test_an_adapter_with_a_name_lies_inside_its_checkpoint(fabricate: Fabricator) -> None:
    output = fabricate.folder / "out"
    for step in (2, 4):
        fabricate.save(output / f"checkpoint-{step}/math", lora=True)
        (output / f"checkpoint-{step}/trainer_state.json").write_text(
            '{"log_history": [{"step": 2, "loss": 7.0}]}'
        )
    params = {"output_dir": str(output)}
    run_id = fabricate.run(params=params, metrics={"loss": [(2, 7.0)]})
    one = only(fabricate)
    assert (one.step, one.kind) == (4, "lora")
    assert one.checkpoint == str(output / "checkpoint-4/math")
    for uri in (one.uri, f"runs:/{run_id}/checkpoint-4/math"):
        assert find(str(uri), fabricate).path == output / "checkpoint-4/math"


def test_of_several_named_adapters_one_is_to_be_named(fabricate: Fabricator) -> None:
    output = fabricate.folder / "out"
    for name in ("math", "code"):
        fabricate.save(output / "checkpoint-4" / name, lora=True)
    run_id = fabricate.run(params={"output_dir": str(output)})
    inside = output / "checkpoint-4"
    assert str(only(fabricate).problem) == (
        f"{inside} holds several checkpoints; name one: {inside}/code, {inside}/math"
    )
    assert find(f"runs:/{run_id}/checkpoint-4/math", fabricate).path == inside / "math"


def test_what_axolotl_merged_and_what_a_search_tried_are_found(fabricate: Fabricator) -> None:
    merged = fabricate.save(fabricate.folder / "axolotl/merged")
    trial = fabricate.save(fabricate.folder / "search/run-1/checkpoint-8")
    for name, output in (("axolotl", merged.parent), ("search", trial.parent.parent)):
        fabricate.run(name, params={"output_dir": str(output)})
    found = {one.run_name: one for one in discover("old", tracking_uri=fabricate.uri)}
    assert {name: one.checkpoint for name, one in found.items()} == {
        "axolotl": str(merged),
        "search": str(trial),
    }
    for one in found.values():
        assert find(str(one.uri), fabricate).path == Path(str(one.checkpoint))


@pytest.mark.parametrize("path", ["", "best", "models/2026/final"])
def test_a_checkpoint_anywhere_among_the_artifacts_is_found(
    path: str, fabricate: Fabricator
) -> None:
    run_id = fabricate.run()
    fabricate.client.log_text(run_id, "x", "plots/loss.txt")
    fabricate.client.log_artifacts(run_id, str(fabricate.checkpoint), path or None)
    one = only(fabricate)
    assert one.problem is None
    assert one.uri == f"runs:/{run_id}/{path}".rstrip("/")
    assert find(str(one.uri), fabricate).path == Path(str(one.checkpoint))


def test_artifacts_that_nothing_sets_apart_are_to_be_named(fabricate: Fabricator) -> None:
    run_id = fabricate.run()
    for name in ("first", "second"):
        fabricate.client.log_artifacts(run_id, str(fabricate.checkpoint), name)
    wanted = "of several checkpoints (run artifacts) nothing says which is the best or the newest; "
    assert str(only(fabricate).problem).startswith(wanted)
    assert find(f"runs:/{run_id}/second", fabricate).path.name == "second"


def test_an_output_directory_without_a_checkpoint_is_named_with_what_it_holds(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "out"
    (output / "runs/x").mkdir(parents=True)
    run_id = fabricate.run("a", params={"output_dir": str(output)})
    fabricate.client.log_text(run_id, "x", "plots/loss.txt")
    problem = str(only(fabricate).problem)
    assert problem.startswith(f"param output_dir is {output}, and {output} holds no checkpoint")
    bare = fabricate.run("bare")
    fabricate.client.log_text(bare, "x", "plots/loss.txt")
    with pytest.raises(SourceError, match=r"none among its artifacts \(plots\), and no output_dir"):
        find(f"runs:/{bare}", fabricate)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            ["model.safetensors", "config.json", "checkpoint-is-incomplete.txt"],
            "holds checkpoint-is-incomplete.txt, which transformers removes when a save is compl",
        ),
        (
            [f"pytorch_model_fsdp_0/{n}" for n in (".metadata", "__0_0.distcp", "__1_0.distcp")],
            "is no whole pickle of a checkpoint (EOFError): it was cut or damaged",
        ),
        (
            ["pytorch_model_fsdp_0/__0_0.distcp"],
            "has no .metadata, which is written last: the save",
        ),
        (
            ["config.json", "latest", "zero_to_fp32.py"]
            + [f"global_step4/zero_pp_rank_{r}_mp_rank_00_model_states.pt" for r in (0, 1)]
            + [f"global_step4/bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt" for r in (0, 1)],
            "latest names '', but there is only global_step4: the save did not finish",
        ),
        (
            ["config.json"] + [f"shard-0000{r}-model-00001-of-00001.safetensors" for r in (1, 2)],
            "model-00001-of-00001.safetensors has 0 bytes, too few for a safetensors file",
        ),
        (
            ["model_world_size_2_rank_0.pt", "huggingface/config.json"],
            "model_world_size_2_rank_1.pt is missing, and with it a part of every tensor",
        ),
        (
            ["model/.metadata", "model/__0_0.distcp"],
            "model/.metadata is no whole pickle of a check",
        ),
    ],
)
def test_shards_are_named_as_what_they_are(
    files: list[str], wanted: str, fabricate: Fabricator
) -> None:
    output = fabricate.folder / "out"
    touch(output / "checkpoint-4", *files)
    run_id = fabricate.run(params={"output_dir": str(output)})
    assert wanted in str(only(fabricate).problem)
    with pytest.raises(SourceError) as error:
        find(f"runs:/{run_id}", fabricate)
    assert wanted in str(error.value)


def test_the_way_out_of_a_finished_fsdp_save_is_a_checkpoint_that_is_read(
    fabricate: Fabricator,
) -> None:
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    weights = load_file(fabricate.checkpoint / "model.safetensors")
    saved = fabricate.folder / "out/checkpoint-4"
    dcp.save({"model": weights}, checkpoint_id=saved / "pytorch_model_fsdp_0", no_dist=True)
    fabricate.run(params={"output_dir": str(fabricate.folder / "out")})
    assert "set the run's tag mergeops.base to it" in str(only(fabricate).problem)
    made = fabricate.folder / "made"
    recover(saved, made, base=fabricate.checkpoint)
    assert resolve_uri(str(made), cache_dir=fabricate.folder / "cache").path == made


def test_a_run_that_waits_for_its_marker_keeps_the_checkpoint_before(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "out"
    fabricate.save(output / "checkpoint-2")
    newest = fabricate.save(output / "checkpoint-4")
    touch(newest, "checkpoint-is-incomplete.txt")
    fabricate.run(params={"output_dir": str(output)})
    one: Any = only(fabricate)
    assert one.step == 2
    assert "the save did not finish" in one.skipped[0]


def test_a_directory_with_a_checkpoint_inside_says_where_it_is(tmp_path: Path) -> None:
    inside = tmp_path / "epoch_0_step_9/model/consolidated"
    touch(inside, "config.json", "model.safetensors")
    with pytest.raises(SourceError, match=f"; name the checkpoint inside it: {inside}$"):
        resolve_uri(str(tmp_path / "epoch_0_step_9"), cache_dir=tmp_path / "cache")
    # PEFT writes each of several adapters into a directory of its own.
    for name in ("code", "math"):
        touch(tmp_path / "two" / name, "adapter_config.json", "adapter_model.safetensors")
    places = f"{tmp_path}/two/code, {tmp_path}/two/math"
    with pytest.raises(SourceError, match=f"; name one of the checkpoints inside it: {places}$"):
        resolve_uri(str(tmp_path / "two"), cache_dir=tmp_path / "cache")


def test_trials_of_a_search_are_told_apart_by_their_losses_or_are_to_be_named(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "search"
    for trial, loss in enumerate((3.0, 2.0)):
        state = {"log_history": [{"step": 2, "loss": loss}]}
        fabricate.save(output / f"run-{trial}/checkpoint-2", state=state)
    for name, metrics in {"told": {"loss": [(2, 2.0)]}, "silent": {}}.items():
        fabricate.run(name, params={"output_dir": str(output)}, metrics=metrics)
    found = {one.run_name: one for one in discover("old", tracking_uri=fabricate.uri)}
    assert found["told"].checkpoint == str(output / "run-1/checkpoint-2")
    assert "name one: run-0/checkpoint-2, run-1/checkpoint-2 (runs:/" in str(
        found["silent"].problem
    )


def test_a_directory_of_too_many_directories_says_that_some_were_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(saves, "MOST_DIRECTORIES", 4)
    assert list(saves.saves_in(LocalDirectory(tmp_path))) == []
    assert caplog.text == ""
    (tmp_path / "d").mkdir()
    assert list(saves.saves_in(LocalDirectory(tmp_path))) == []
    assert "holds more than 4 directories, and the rest was not looked at" in caplog.text
