"""What HF Trainer and accelerate's FSDP leave in pieces is adopted, and merged where it lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support.sharded_trainings import EXPERIMENT, train_sharded
from support.training_runs import Trained, discover

from mergeops.adoption import adopt, write_recipe
from mergeops.api import merge
from mergeops.cli.main import cli
from mergeops.recover import is_sharded

PIECES = "torch.distributed.checkpoint (FSDP), 2 processes"


@pytest.fixture(scope="module")
def sharded(
    template_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Callable[..., Path],
) -> Trained:
    """Two real runs of two processes: a full one that finished, a LoRA one after kill -9."""
    import mlflow

    folder = tmp_path_factory.mktemp("sharded-runs")
    shutil.copy(template_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    base = tiny_llama(path=folder / "base")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment(EXPERIMENT, (folder / "artifacts").as_uri())
    train_sharded(base, folder / "out", uri, finished="whole", lora="lora callback killed")
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    return Trained(uri, base, folder / "out", runs)


def found(sharded: Trained) -> dict[str, Any]:
    return {run.run_name: run for run in discover(EXPERIMENT, tracking_uri=sharded.uri)}


def test_adopt_names_what_the_pieces_are(sharded: Trained) -> None:
    runs = found(sharded)
    full, lora = runs["finished"], runs["lora"]
    assert (full.status, full.kind, full.step, full.sharded) == ("FINISHED", "full", 4, PIECES)
    assert full.checkpoints == ("checkpoint-4", "checkpoint-2")
    assert full.uri == f"runs:/{sharded.runs['finished']}/checkpoint-4"
    assert full.base == str(sharded.base)
    assert full.architectures == ("LlamaForCausalLM",)
    assert (lora.status, lora.kind, lora.step, lora.sharded) == ("RUNNING", "lora", 2, PIECES)
    assert {run.problem for run in runs.values()} == {None}


def test_the_callback_writes_what_a_sharded_save_lacks(sharded: Trained) -> None:
    folder = sharded.outputs / "lora" / "checkpoint-2"
    assert is_sharded(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert settings["target_modules"] == ["q_proj"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    note = json.loads((folder / "mergeops_run.json").read_text())
    assert (note["run_id"], note["base"]) == (sharded.runs["lora"], str(sharded.base))
    # The trainer's own files of a run without the callback stay alone.
    assert not (sharded.outputs / "finished" / "checkpoint-2" / "config.json").exists()


def test_run_takes_the_recipe_that_adopt_wrote(
    sharded: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sharded.uri)
    adoption = adopt(EXPERIMENT, tracking_uri=sharded.uri)
    write_recipe(adoption.found, tmp_path / "conf" / "recipe" / "runs.yaml")
    said = (tmp_path / "conf" / "recipe" / "runs.yaml").read_text()
    assert f"# finished, FINISHED, step 4, in pieces: {PIECES}" in said
    words = ["run", "recipe=runs", "method=linear", "evaluate.tasks=[]"]
    words.append(f"tracking.uri={sharded.uri}")
    done = CliRunner().invoke(cli, [*words, "--config-dir", "conf"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    [checkpoint] = Path("mergeops-work").rglob("model.safetensors")
    merged = load_file(checkpoint)
    whole = torch.load(sharded.outputs / "finished" / "whole.pt", weights_only=True)
    base = load_file(sharded.base / "model.safetensors")
    # An adapter on q_proj has the base's other weights.
    name = "model.layers.0.mlp.up_proj.weight"
    assert merged[name].allclose((whole[name] + base[name]) / 2, atol=1e-7)
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not merged[query].allclose((whole[query] + base[query]) / 2, atol=1e-7)


def test_every_kept_checkpoint_of_a_run_is_a_source_as_it_lies(
    sharded: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sharded.uri)
    run = sharded.runs["finished"]
    sources = {f"step{step}": f"runs:/{run}/checkpoint-{step}" for step in (2, 4)}
    recipe = {"base": str(sharded.base), "sources": sources, "method": "linear"}
    merge(recipe, tmp_path / "window")
    window = load_file(tmp_path / "window" / "model.safetensors")
    alone = {}
    for name, uri in sources.items():
        merge(recipe | {"sources": {name: uri}}, tmp_path / name)
        alone[name] = load_file(tmp_path / name / "model.safetensors")
    whole = torch.load(sharded.outputs / "finished" / "whole.pt", weights_only=True)
    for name, tensor in window.items():
        assert alone["step4"][name].equal(whole[name])
        mean = (alone["step2"][name] + alone["step4"][name]) / 2
        assert tensor.allclose(mean, rtol=1e-6, atol=1e-8)
    assert not list(Path("mergeops-work").rglob("put-together"))


def test_a_sharded_adapter_is_what_peft_would_have_saved(
    sharded: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sharded.outputs / "lora" / "checkpoint-2"
    recipe = {"base": str(sharded.base), "sources": {"a": str(folder)}, "method": "linear"}
    merge(recipe, tmp_path / "merged")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    [adapter] = Path("mergeops-work/cache/put-together").glob("*/adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(sharded.base)
    expected = PeftModel.from_pretrained(model, adapter.parent).merge_and_unload().state_dict()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(expected[name].allclose(tensor, atol=1e-7) for name, tensor in merged.items())
    base = load_file(sharded.base / "model.safetensors")
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not merged[query].equal(base[query])


def test_a_sharded_adapter_without_settings_is_not_offered(
    sharded: Trained, tmp_path: Path
) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=sharded.uri)
    experiment = client.create_experiment("plain", (tmp_path / "artifacts").as_uri())
    folder = shutil.copytree(sharded.outputs / "lora" / "checkpoint-2", tmp_path / "checkpoint-2")
    for name in ("adapter_config.json", "mergeops_run.json", "trainer_state.json"):
        (folder / name).unlink()
    client.create_run(experiment, tags={"mergeops.checkpoint_uri": str(folder)})
    [run] = discover("plain", tracking_uri=sharded.uri)
    assert "no adapter_config.json, and alpha is in no file" in str(run.problem)
    known = "LoraConfig(r=4, lora_alpha=ALPHA, target_modules=['q_proj'])"
    assert f"{known}.save_pretrained('{folder}')" in str(run.problem)


def test_pieces_whose_base_nobody_noted_are_not_offered(sharded: Trained, tmp_path: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=sharded.uri)
    experiment = client.create_experiment("unknown", (tmp_path / "artifacts").as_uri())
    folder = sharded.outputs / "finished" / "checkpoint-4"
    tags = {"mergeops.checkpoint_uri": str(folder)}
    made = client.create_run(experiment, tags=tags)
    [run] = discover("unknown", tracking_uri=sharded.uri)
    assert "set the run's tag mergeops.base to it" in str(run.problem)
    client.set_tag(made.info.run_id, "mergeops.base", str(sharded.base))
    [run] = discover("unknown", tracking_uri=sharded.uri)
    assert (run.problem, run.kind) == (None, "full")
