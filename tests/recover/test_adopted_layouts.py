"""What other trainers leave in pieces is found where they say, and offered where it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import discover
from support.zero_files import write_zero2, write_zero3

from mergeops.adoption.found import FoundRun
from mergeops.recipe import Recipe
from mergeops.recover import open_on_base
from mergeops.sources import resolve


@pytest.fixture
def adopted(client: Any, new_store: str, tmp_path: Path) -> Any:
    """The only run of an experiment, with these params."""

    def look(tags: dict[str, str] | None = None, **params: str) -> FoundRun:
        name = f"e{len(client.search_experiments())}"
        experiment = client.create_experiment(name, (tmp_path / "artifacts").as_uri())
        run = client.create_run(experiment, run_name="run", tags=tags)
        for key, value in params.items():
            client.log_param(run.info.run_id, key, value)
        [found] = discover(name, tracking_uri=new_store)
        return found

    return look


def test_nemo_automodels_slices_are_offered_where_all_are_there(
    adopted: Any, written: Path, trained_base: Path, tmp_path: Path
) -> None:
    model = tmp_path / "out" / "epoch_0_step_10" / "model"
    shutil.copytree(written / "slices", model)
    params = {
        "checkpoint.checkpoint_dir": str(tmp_path / "out"),
        "model.pretrained_model_name_or_path": str(trained_base),
    }
    found = adopted(**params)
    assert (found.problem, found.kind, found.step) == (None, "full", 10)
    assert found.sharded == "slices in safetensors files, 2 processes"
    # How large the whole is only the base says: the last process's slices may be missing.
    max(model.glob("shard-*")).unlink()
    cut = adopted(**params)
    assert "the files of a process are missing" in str(cut.problem)


def test_verls_run_is_found_by_its_params(
    adopted: Any, written: Path, trained_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (4, 8):
        shutil.copytree(written / "verl" / "global_step_4", folder / f"global_step_{step}")
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    params = {
        "trainer/default_local_dir": str(folder),
        "actor_rollout_ref/model/path": str(trained_base),
    }
    found = adopted(**params)
    assert (found.problem, found.step, found.base) == (None, 4, str(trained_base))
    assert found.sharded == "a file of each process (verl, accelerate), 2 processes"
    assert "is newer than step 4, which" in found.skipped[0]


def test_llama_factorys_marker_decides(
    adopted: Any, written: Path, trained_base: Path, tmp_path: Path
) -> None:
    for step in (4, 8):
        target = tmp_path / "saves" / f"checkpoint-{step}" / "model"
        shutil.copytree(written / "fsdp/checkpoint-4/pytorch_model_fsdp_0", target)
    (tmp_path / "saves" / "checkpoint-4" / "CHECKPOINT_COMPLETE").touch()
    found = adopted(output_dir=str(tmp_path / "saves"), _name_or_path=str(trained_base))
    assert (found.problem, found.step) == (None, 4)
    assert "has no CHECKPOINT_COMPLETE, which" in found.skipped[0]


def test_the_steps_of_deepspeed_alone_are_sources_of_a_window(
    adopted: Any, trained_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    weights = load_file(trained_base / "model.safetensors")
    run = write_zero3(tmp_path / "run", weights, 2)
    shutil.copytree(run / "global_step2", run / "global_step4")
    (run / "latest").write_text("global_step4")
    found = adopted(output_dir=str(run), _name_or_path=str(trained_base))
    assert (found.problem, found.step) == (None, 4)
    assert found.checkpoints == ("global_step4", "global_step2")
    assert found.sharded == "DeepSpeed ZeRO, 2 processes"
    sources = {f"s{step}": {"uri": str(run / f"global_step{step}")} for step in (2, 4)}
    recipe = Recipe.from_dict(
        {"base": str(trained_base), "sources": sources, "method": {"name": "linear"}}
    )
    resolved = resolve(recipe, cache_dir=tmp_path / "cache")
    assert {source.adapter_base for source in resolved.sources.values()} == {trained_base}
    for source in resolved.sources.values():
        assert open_on_base(source.path, trained_base).tensors.keys() == weights.keys()


def test_a_step_that_deepspeed_did_not_finish_is_passed_over(
    adopted: Any, trained_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    run = write_zero2(tmp_path / "run", load_file(trained_base / "model.safetensors"))
    shutil.copytree(run / "global_step2", run / "global_step4")
    found = adopted(output_dir=str(run), _name_or_path=str(trained_base))
    assert (found.problem, found.step) == (None, 2)
    assert "DeepSpeed writes that last, so the save did not finish" in found.skipped[0]


def test_torchtitans_and_torchtunes_folders_are_found_by_their_names(
    adopted: Any, trained_base: Path, written: Path, tmp_path: Path
) -> None:
    inner = written / "fsdp/checkpoint-4/pytorch_model_fsdp_0"
    for name in ("step-10", "dist_epoch_1", "epoch_2"):
        folder = tmp_path / name
        shutil.copytree(inner, folder / name)
        tags = {"mergeops.checkpoint_uri": str(folder), "mergeops.base": str(trained_base)}
        found = adopted(tags)
        assert (found.problem, found.checkpoint) == (None, str(folder / name))
        assert found.step == (10 if name == "step-10" else None)
