"""Trainings with transformers' own default of output_dir: a relative path that all of them share"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import discover


@pytest.fixture(scope="module")
def base(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama()


@pytest.fixture
def tracked(new_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store)
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "0")
    mlflow.set_tracking_uri(new_store)
    yield new_store
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


def trainer(base: Path, learning_rate: float) -> Any:
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    rows = [{"input_ids": [1, 5 + i, 7, 2], "labels": [1, 5 + i, 7, 2]} for i in range(8)]
    arguments = TrainingArguments(
        max_steps=2,
        save_steps=2,
        logging_steps=1,
        learning_rate=learning_rate,
        per_device_train_batch_size=2,
        report_to="mlflow",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(base)
    return Trainer(model=model, args=arguments, train_dataset=rows)


def test_a_run_is_not_given_the_checkpoint_of_the_project_that_adopt_was_started_in(
    base: Path, tracked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rate in (("mine", 1e-2), ("hers", 1e-3)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        trainer(base, rate).train()
    seen = {}
    for experiment in ("mine", "hers"):
        for here in ("mine", "hers"):
            monkeypatch.chdir(tmp_path / here)
            (one,) = discover(experiment, tracking_uri=tracked)
            seen[experiment, here] = one
    for experiment, other in (("mine", "hers"), ("hers", "mine")):
        own = tmp_path / experiment / "trainer_output/checkpoint-2"
        assert seen[experiment, experiment].checkpoint == str(own)
        wrong = seen[experiment, other]
        assert wrong.checkpoint is None
        assert f"{tmp_path / other}/trainer_output/checkpoint-2 was written by another run: " in (
            str(wrong.problem)
        )
        assert "at step 2, this run logged" in str(wrong.problem)


def test_of_two_trainings_in_one_process_the_first_does_not_get_the_seconds_checkpoint(
    base: Path, tracked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ft")
    again = trainer(base, 1e-2)
    again.train()
    # The model is further now, so its losses are others.
    again.train()
    runs = discover("ft", tracking_uri=tracked)
    assert [one.checkpoint for one in runs] == [None, None]
    second, first = runs
    assert "trainer_output/checkpoint-2 was written by another run: its trainer_state" in (
        str(first.problem)
    )
    # MLflow's callback logs no params of a second training, so nobody knows its directory.
    assert "no output_dir among its params" in str(second.problem)
