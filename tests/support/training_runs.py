"""Fixtures: an MLflow database, and runs that the HF Trainer's callback really wrote into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mergeops.adoption.discover import Tick, read_experiment
from mergeops.adoption.found import FoundRun
from mergeops.recipe.settings import TrackingSpec
from mergeops.sources.training_runs import open_store

EXPERIMENT = "finetunes"


@dataclass(frozen=True)
class Trained:
    """An experiment of real fine-tuning runs of one base."""

    uri: str
    base: Path
    outputs: Path
    """Below it every run has an output directory of its name."""
    runs: dict[str, str]
    """Run name -> run id."""


def discover(
    experiment: str,
    *,
    tracking_uri: str,
    filter_string: str | None = None,
    path_map: Mapping[str, str] | None = None,
    progress: Tick | None = None,
) -> list[FoundRun]:
    """Every run of an experiment with its best checkpoint, newest first."""
    store = open_store(TrackingSpec(uri=tracking_uri), path_map)
    return list(read_experiment(store, experiment, filter_string, progress).found)


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it; making one takes eight seconds, copying it none."""
    import mlflow

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def new_store(template_database: Path, tmp_path: Path) -> str:
    """The URI of an empty MLflow database."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(template_database, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def client(new_store: str) -> Any:
    """A client of the empty database."""
    import mlflow

    return mlflow.MlflowClient(tracking_uri=new_store)


@pytest.fixture(scope="session")
def trained(
    template_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Callable[..., Path],
) -> Trained:
    """Six runs by transformers' Trainer and MLflowCallback: full and LoRA, with and without logged
    checkpoints, one that failed, one that was killed, one whose newest checkpoint is cut off."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(template_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    base = tiny_llama(path=folder / "base")
    import mlflow

    patch = pytest.MonkeyPatch()
    before = mlflow.get_tracking_uri()
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    # It starts an interpreter for each save, to guess the requirements of a stub.
    patch.setattr(mlflow.models, "infer_pip_requirements", lambda *args, **kwargs: [])
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    client.create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
    outputs = folder / "out"
    runs = {}
    try:
        plans: dict[str, dict[str, Any]] = {
            "math lr=0.01": {"best": True},
            "lora": {"lora": True, "save_steps": 4},
            "lora-plain": {"lora": True, "log_artifacts": False},
            "diverged": {"fails": True, "log_artifacts": False},
            "killed": {"log_artifacts": False},
            "cut": {"log_artifacts": False},
        }
        for i, (name, how) in enumerate(plans.items()):
            runs[name] = train(base, outputs / name, name, client, patch, first_token=i, **how)
    finally:
        patch.undo()
        mlflow.set_tracking_uri(before)
    client.set_terminated(runs["killed"], "KILLED")
    cut_short(outputs / "cut" / "checkpoint-4" / "model.safetensors")
    return Trained(uri, base, outputs, runs)


def train(
    base: Path,
    output: Path,
    name: str,
    client: Any,
    patch: pytest.MonkeyPatch,
    *,
    lora: bool = False,
    log_artifacts: bool = True,
    best: bool = False,
    fails: bool = False,
    save_steps: int = 2,
    first_token: int = 0,
) -> str:
    """Train four steps with a checkpoint every two; gives the run's id."""
    import mlflow
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Breaks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("loss is NaN")

    patch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "1" if log_artifacts else "0")
    model = AutoModelForCausalLM.from_pretrained(base)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    texts = [[1, 5 + first_token + i, 7, 2] for i in range(8)]
    rows = [{"input_ids": text, "labels": text} for text in texts]
    # Training unlearns these tokens at every step, so the first checkpoint is the best.
    asked = [row | {"labels": [1, 90, 91, 92]} if best else row for row in rows[:2]]
    arguments = TrainingArguments(
        output_dir=str(output),
        run_name=name,
        max_steps=4,
        save_steps=save_steps,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=1e-2 if best else 1e-3,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        per_device_train_batch_size=2,
        report_to="mlflow",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=asked,
        callbacks=[Breaks()] if fails else [],
    )
    try:
        trainer.train()
    except RuntimeError:
        mlflow.end_run("FAILED")
    (experiment,) = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    wanted = f"attributes.run_name = '{name}'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    return str(run.info.run_id)


@dataclass
class Fabricator:
    """Writes runs as trainers other than the HF Trainer log them."""

    client: Any
    uri: str
    folder: Path
    checkpoint: Path
    adapter: Path
    experiment: str

    def run(
        self,
        name: str = "run",
        *,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        metrics: dict[str, list[tuple[int, float]]] | None = None,
        status: str = "FINISHED",
    ) -> str:
        """A run with these params, tags and metric histories [(step, value)]."""
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        for key, value in (params or {}).items():
            self.client.log_param(run_id, key, value)
        for key, history in (metrics or {}).items():
            for step, value in history:
                self.client.log_metric(run_id, key, value, step=step)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def save(self, path: Path, *, lora: bool = False, state: dict[str, Any] | None = None) -> Path:
        """A whole checkpoint at a path, with a trainer state."""
        shutil.copytree(self.adapter if lora else self.checkpoint, path)
        if state is not None:
            (path / "trainer_state.json").write_text(json.dumps(state))
        return path

    def logged_model(self, run_id: str, name: str, content: Path, inside: str = "") -> Any:
        """A READY LoggedModel, output of the run, that holds a directory at ``inside``."""
        from mlflow.entities import LoggedModelOutput

        model = self.client.create_logged_model(self.experiment, name, source_run_id=run_id)
        staged = self.folder / "staged" / model.model_id
        shutil.copytree(content, staged / inside)
        self.client.log_model_artifacts(model.model_id, str(staged))
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return self.client.finalize_logged_model(model.model_id, "READY")


@pytest.fixture(scope="session")
def full_and_adapter(
    tiny_llama: Callable[..., Path], tiny_lora: Callable[..., Path]
) -> tuple[Path, Path]:
    """A full checkpoint and an adapter on it; copy before you change them."""
    full = tiny_llama()
    return full, tiny_lora(full)


@pytest.fixture
def fabricate(
    client: Any, new_store: str, tmp_path: Path, full_and_adapter: tuple[Path, Path]
) -> Fabricator:
    """A fabricator in an empty experiment named ``old``."""
    experiment = client.create_experiment("old", (tmp_path / "artifacts").as_uri())
    return Fabricator(client, new_store, tmp_path, *full_and_adapter, experiment=experiment)


def cut_short(file: Path) -> None:
    """Cut the end off a file."""
    size = file.stat().st_size
    with open(file, "r+b") as content:
        content.truncate(size - 100)


@pytest.fixture
def fabricate_adapter(
    full_and_adapter: tuple[Path, Path], tmp_path: Path
) -> Callable[[str | None], Path]:
    """A factory of copies of the adapter whose config names this base."""

    def make(base: str | None) -> Path:
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(full_and_adapter[1], folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return make
