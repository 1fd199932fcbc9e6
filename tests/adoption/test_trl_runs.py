"""Runs that TRL's trainers really wrote: SFT with a LoRA adapter, DPO of a full model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mergeops.adoption.adoption import Adoption, adopt
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.resolution import resolve_uri

WORDS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Tuned:
    """What was trained, and what adopt made of it."""

    uri: str
    base: Path
    adoption: Adoption
    params: dict[str, dict[str, str]]
    """Run name -> what TRL logged."""


@pytest.fixture(scope="module")
def tuned(
    template_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Callable[..., Path],
) -> Iterator[Tuned]:
    import mlflow
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    folder = tmp_path_factory.mktemp("trl")
    shutil.copy(template_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    base = tiny_llama(path=folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)

    def settings(name: str) -> dict[str, Any]:
        return {
            "output_dir": str(folder / name),
            "run_name": name,
            "max_steps": 2,
            "save_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "report_to": "mlflow",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
        }

    patch = pytest.MonkeyPatch()
    before = mlflow.get_tracking_uri()
    patch.setenv("MLFLOW_EXPERIMENT_NAME", "trl")
    patch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "0")
    mlflow.set_tracking_uri(uri)
    try:
        SFTTrainer(
            str(base),
            args=SFTConfig(**settings("sft"), eval_strategy="steps", eval_steps=1),
            train_dataset=Dataset.from_list(
                [{"prompt": f"say {word}", "completion": f" {word}"} for word in WORDS]
            ),
            eval_dataset=Dataset.from_list([{"prompt": "say one", "completion": " one"}]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        ).train()
        DPOTrainer(
            str(base),
            args=DPOConfig(**settings("dpo")),
            train_dataset=Dataset.from_list(
                [{"prompt": f"say {w}", "chosen": f" {w}", "rejected": " no"} for w in WORDS]
            ),
            processing_class=tokenizer,
        ).train()
    finally:
        patch.undo()
        mlflow.set_tracking_uri(before)
    client = mlflow.MlflowClient(tracking_uri=uri)
    adoption = adopt("trl", tracking_uri=uri, register="ingredients")
    params = {one.run_name: client.get_run(one.run_id).data.params for one in adoption.found}
    yield Tuned(uri, base, adoption, params)


def test_an_sft_run_with_lora_and_a_full_dpo_run_are_adopted(tuned: Tuned) -> None:
    rows = {row["run_name"]: row for row in tuned.adoption.rows()}
    assert {name: (row["kind"], row["status"]) for name, row in rows.items()} == {
        "sft": ("lora", "FINISHED"),
        "dpo": ("full", "FINISHED"),
    }
    for row in rows.values():
        assert row["problem"] is None
        assert row["base"] == str(tuned.base)
        assert row["checkpoints"] == ["checkpoint-2", "checkpoint-1"]
        assert row["group"] == 0
        assert row["registered"].startswith("ingredients/")
    assert rows["sft"]["found_by"]["base"] == "adapter_config.json"
    assert rows["dpo"]["found_by"]["base"] == "param _name_or_path"
    assert rows["sft"]["metrics"]["eval_loss"] == rows["sft"]["metrics"]["eval_loss_best"]
    assert rows["dpo"]["metrics"]["train_loss"] > 0


def test_what_trl_logs_is_the_trainers_params_and_its_own(tuned: Tuned) -> None:
    for name, own in {"sft": "completion_only_loss", "dpo": "beta"}.items():
        logged = tuned.params[name]
        assert {"_name_or_path", "output_dir", "architectures", own} <= set(logged)
        assert "model_name_or_path" not in logged


def test_both_resolve_to_the_bytes_that_trl_wrote(tuned: Tuned, tmp_path: Path) -> None:
    for one in tuned.adoption.adopted:
        source = resolve_uri(
            f"models:/{one.registered}", cache_dir=tmp_path, tracking=TrackingSpec(uri=tuned.uri)
        )
        assert str(source.path) == one.found.checkpoint
        assert source.is_adapter == (one.found.run_name == "sft")
