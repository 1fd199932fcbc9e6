"""Runs as trainers that are not installed here log them, written from what their code does.

Axolotl        src/axolotl/utils/callbacks/mlflow_.py, SaveAxolotlConfigtoMlflowCallback: a copy of
               the config as artifact ``axolotl_config_<random>.yml`` at the run's root, only where
               HF_MLFLOW_LOG_ARTIFACTS is set; everything else by the HF Trainer's MLflowCallback.
LLaMA-Factory  src/llamafactory/train/callbacks.py, ReporterCallback: its own arguments go to wandb
               and others, never to MLflow; so a run holds what the HF Trainer logs and no more.
Unsloth        unsloth/models/llama.py and vision.py: ``model.config.update({"unsloth_version":
               ...})``, so that it is a param; ``_name_or_path`` is the 4-bit repository.
torchtune      torchtune/training/metric_logging.py, MLFlowLogger.log_config: the flattened config
               as params, and ``torchtune_config.yaml`` as artifact below its whole output path;
               weights stay in ``output_dir/epoch_N``, with the index of a sharded checkpoint. Of a
               LoRA training they are merged; PEFT's adapter and ``adapter_model.pt`` lie beside
               them (training/checkpointing/_checkpointer.py, save_checkpoint).
MLflow 2       mlflow/pyfunc: log_model writes below the run, into
               ``checkpoint-N/artifacts/checkpoint-N``, and lists it in the tag
               ``mlflow.log-model.history``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import Fabricator, discover

from mergeops.adoption.adoption import adopt
from mergeops.adoption.found import FoundRun
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri

# What MLflowCallback makes of config.to_dict() and TrainingArguments.to_dict(): str() of each.
HF_PARAMS = {
    "architectures": "['LlamaForCausalLM']",
    "model_type": "llama",
    "vocab_size": "128",
    "hidden_size": "32",
    "num_hidden_layers": "2",
    "torch_dtype": "None",
    "metric_for_best_model": "None",
    "load_best_model_at_end": "False",
    "push_to_hub": "False",
    "report_to": "['mlflow']",
}
STATE = {
    "global_step": 4,
    "best_model_checkpoint": None,
    "log_history": [{"step": 2, "eval_loss": 1.5}, {"step": 4, "eval_loss": 1.75}],
}


def only(fabricate: Fabricator, **how: Any) -> FoundRun:
    (found,) = discover("old", tracking_uri=fabricate.uri, **how)
    return found


def test_axolotl_with_its_config_among_the_artifacts(fabricate: Fabricator) -> None:
    output = fabricate.folder / "outputs/lora-out"
    fabricate.save(output / "checkpoint-4", lora=True, state=STATE)
    fabricate.save(output / "checkpoint-2", lora=True, state=STATE)
    config = {"base_model": "org/llama", "adapter": "qlora", "lora_r": 4, "output_dir": str(output)}
    # MLFLOW_MAX_LOG_PARAMS cuts the params: output_dir is only in the config then.
    run_id = fabricate.run("axolotl", params={"model_type": "llama", "vocab_size": "128"})
    fabricate.client.log_text(run_id, json.dumps(config), "axolotl_config_k3x_9.yml")
    fabricate.client.log_text(run_id, "{}", "PredictionsVsGroundTruth.json")
    one = only(fabricate)
    assert (one.kind, one.step, one.checkpoints) == ("lora", 2, ("checkpoint-4", "checkpoint-2"))
    assert one.found_by["checkpoint"] == (
        "artifact axolotl_config_k3x_9.yml; lowest eval_loss in trainer_state.json of checkpoint-4"
    )
    assert one.metrics["eval_loss"] == one.metrics["eval_loss_best"] == 1.5
    # An adapter's own config knows its base better than the YAML does.
    assert one.found_by["base"] == "adapter_config.json"


def test_axolotl_without_artifacts_is_a_run_of_the_hf_trainer(fabricate: Fabricator) -> None:
    output = fabricate.folder / "model-out"
    fabricate.save(output / "checkpoint-4")
    params = HF_PARAMS | {"output_dir": str(output), "_name_or_path": "NousResearch/Llama-3.2-1B"}
    fabricate.run("axolotl", params=params, metrics={"train/loss": [(4, 1.0)]})
    one = only(fabricate)
    assert (one.kind, one.base) == ("full", "NousResearch/Llama-3.2-1B")


def test_llama_factory_logs_neither_its_finetuning_type_nor_its_adapter(
    fabricate: Fabricator,
) -> None:
    output = fabricate.folder / "saves/llama3-8b/lora/sft"
    fabricate.save(output / "checkpoint-4", lora=True, state=STATE)
    # It also saves the last adapter into the output directory itself.
    shutil.copytree(fabricate.adapter, output, dirs_exist_ok=True)
    params = HF_PARAMS | {"output_dir": str(output), "_name_or_path": "meta-llama/Meta-Llama-3-8B"}
    fabricate.run("factory", params=params, status="KILLED")
    one = only(fabricate)
    assert (one.status, one.kind, one.step) == ("KILLED", "lora", 4)
    assert one.found_by["kind"] == "adapter_config.json"


def test_unsloth_trains_on_a_four_bit_repository(
    fabricate: Fabricator, fabricate_adapter: Any
) -> None:
    output = fabricate.folder / "outputs"
    shutil.copytree(
        fabricate_adapter("unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit"), output / "checkpoint-4"
    )
    quantization = "{'load_in_4bit': True, 'quant_method': 'bitsandbytes'}"
    params = HF_PARAMS | {
        "output_dir": str(output),
        "_name_or_path": "unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit",
        "unsloth_version": "2026.1.1",
        "quantization_config": quantization,
    }
    fabricate.run("unsloth", params=params)
    one = only(fabricate)
    assert one.base == "unsloth/llama-3.2-1b-instruct"
    assert one.found_by["base"] == "adapter_config.json without its 4-bit suffix"


def torchtune_checkpoint(source: Path, path: Path) -> None:
    """As FullModelHFCheckpointer saves: numbered shards, whatever their number, and an index."""
    from safetensors import safe_open

    shutil.copytree(source, path)
    shard = "model-00001-of-00001.safetensors"
    (path / "model.safetensors").rename(path / shard)
    with safe_open(path / shard, "pt") as file:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(file.keys(), shard)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def test_torchtune_saves_epochs_and_logs_a_flattened_config(fabricate: Fabricator) -> None:
    output = fabricate.folder / "torchtune/full"
    for epoch in (0, 1):
        torchtune_checkpoint(fabricate.checkpoint, output / f"epoch_{epoch}")
    (output / "recipe_state").mkdir()
    params = {
        "output_dir": str(output),
        "model._component_": "torchtune.models.llama3_2.llama3_2_1b",
        "checkpointer._component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpointer.checkpoint_dir": "/tmp/Llama-3.2-1B-Instruct",
        "checkpointer.model_type": "LLAMA3_2",
        "epochs": "2",
    }
    run_id = fabricate.run("tune", params=params, metrics={"loss": [(1, 2.0), (2, 1.0)]})
    name = f"{str(output).lstrip('/')}/torchtune_config.yaml"
    fabricate.client.log_text(run_id, f"output_dir: {output}\n", name)
    one = only(fabricate)
    assert (one.kind, one.base) == ("full", "/tmp/Llama-3.2-1B-Instruct")
    assert str(one.checkpoint) == str(output / "epoch_1")
    assert one.checkpoints == ("epoch_1", "epoch_0")
    assert one.uri == f"runs:/{run_id}/epoch_1"


def test_the_model_that_torchtune_merged_is_meant_not_the_adapter_beside_it(
    fabricate: Fabricator,
) -> None:
    saved = fabricate.folder / "torchtune/lora/epoch_0"
    torchtune_checkpoint(fabricate.checkpoint, saved)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(fabricate.adapter / name, saved / name)
    run_id = fabricate.run("tune", params={"output_dir": str(saved.parent)})
    assert "a full model and an adapter beside it" in str(only(fabricate).problem)
    (saved / "adapter_model.pt").write_bytes(b"in torchtune's names")
    one = only(fabricate)
    assert (one.kind, one.checkpoint, one.problem) == ("full", str(saved), None)
    source = resolve_uri(
        f"runs:/{run_id}",
        cache_dir=fabricate.folder / "cache",
        tracking=TrackingSpec(uri=fabricate.uri),
    )
    assert (source.path, source.adapter_base) == (saved, None)


def test_mlflow_two_keeps_checkpoints_below_the_run(fabricate: Fabricator) -> None:
    run_id = fabricate.run("old", params=HF_PARAMS | {"_name_or_path": "org/base"})
    history = []
    for step in (2, 4):
        name = f"checkpoint-{step}"
        staged = fabricate.save(fabricate.folder / f"staged/{name}", state=STATE)
        fabricate.client.log_artifacts(run_id, str(staged), f"{name}/artifacts/{name}")
        fabricate.client.log_text(run_id, "flavors: {python_function: {}}\n", f"{name}/MLmodel")
        history.append(
            {"run_id": run_id, "artifact_path": name, "flavors": {"python_function": {}}}
        )
    fabricate.client.set_tag(run_id, "mlflow.log-model.history", json.dumps(history))
    one = only(fabricate)
    assert (one.step, one.found_by["checkpoint"]) == (
        2,
        "run artifacts; lowest eval_loss in trainer_state.json of checkpoint-4",
    )
    (adopted,) = adopt("old", tracking_uri=fabricate.uri, register="ing").adopted
    version = fabricate.client.get_model_version("ing", "1")
    assert version.source == f"models:/{adopted.model_id}"
    assert version.tags["mergeops.role"] == "source"
    assert version.tags["mergeops.status"] == "ingredient"


@pytest.mark.parametrize("best", ["checkpoint-2", "checkpoint-4"])
def test_the_trainers_own_choice_wins_over_the_lowest_loss(
    best: str, fabricate: Fabricator
) -> None:
    output = fabricate.folder / "out"
    state = STATE | {"best_model_checkpoint": f"/gone/host/out/{best}"}
    fabricate.save(output / "checkpoint-2")
    fabricate.save(output / "checkpoint-4", state=state)
    fabricate.run(params={"output_dir": str(output)})
    assert only(fabricate).step == int(best[-1])
