"""MergeReadyCallback: what it notes, and that it never stands in the way of training."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import discover

from mergeops import MergeReadyCallback
from mergeops.adoption.courier import Courier, check_answers
from mergeops.adoption.found import FoundRun
from mergeops.checkpoint import weights_sha256

SCRIPT = """
import os, signal, sys
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from mergeops import MergeReadyCallback

class Dies(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 5:
            if sys.argv[3] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("loss is NaN")

rows = [{"input_ids": [1, 5 + i, 7, 2], "labels": [1, 5 + i, 7, 2]} for i in range(8)]
arguments = TrainingArguments(
    output_dir=sys.argv[2], run_name=sys.argv[3], max_steps=6, save_steps=2, eval_strategy="steps",
    eval_steps=2, logging_steps=1, learning_rate=1e-2, per_device_train_batch_size=2,
    report_to=sys.argv[4], use_cpu=True, disable_tqdm=True,
)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
Trainer(
    model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:2],
    callbacks=[MergeReadyCallback(), Dies()],
).train()
"""


@pytest.fixture(scope="module")
def base(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama()


@pytest.fixture
def tracked(new_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The empty database as what training scripts log to, experiment ``ft``."""
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ft")
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "0")
    mlflow.set_tracking_uri(new_store)
    yield new_store
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


def train(
    base: Path,
    output: Path,
    *,
    report_to: str = "none",
    lora: bool = False,
    worse: bool = False,
    **settings: Any,
) -> None:
    """Four steps with a checkpoint and an evaluation every two, and the callback.

    ``worse``: the evaluation asks for tokens that training unlearns, so the first checkpoint is
    the best, on any machine.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(base)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    rows = [{"input_ids": [1, 5 + i, 7, 2], "labels": [1, 5 + i, 7, 2]} for i in range(8)]
    asked = [row | {"labels": [1, 90, 91, 92]} if worse else row for row in rows[:2]]
    arguments = TrainingArguments(
        output_dir=str(output),
        run_name=output.name,
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=2,
        report_to=report_to,
        use_cpu=True,
        disable_tqdm=True,
        **{"learning_rate": 1e-2} | settings,
    )
    data = {"train_dataset": rows, "eval_dataset": asked}
    Trainer(model=model, args=arguments, callbacks=[MergeReadyCallback()], **data).train()


def found(uri: str) -> dict[str, FoundRun]:
    return {one.run_name: one for one in discover("ft", tracking_uri=uri)}


def run_of(uri: str, name: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri).get_run(found(uri)[name].run_id)


@pytest.mark.parametrize("report_to", ["mlflow", "none"])
def test_it_works_with_and_without_the_trainers_own_reporting(
    report_to: str, base: Path, tracked: str, tmp_path: Path
) -> None:
    train(base, tmp_path / "full", report_to=report_to, worse=True)
    one = found(tracked)["full"]
    run = run_of(tracked, "full")
    assert (one.status, one.kind, one.step) == ("FINISHED", "full", 2)
    assert (one.base, one.base_sha256) == (str(base), weights_sha256(base))
    assert one.found_by["checkpoint"].startswith("tag mergeops.output_dir; ")
    assert one.architectures == ("LlamaForCausalLM",)
    tags = run.data.tags
    assert tags["mergeops.checkpoints"] == "checkpoint-2 checkpoint-4"
    assert tags["mergeops.best_checkpoint"] == "checkpoint-2"
    name, value = tags["mergeops.best_metric"].split("=")
    assert (name, float(value)) == ("eval_loss", one.metrics["eval_loss"])
    assert tags["mergeops.output_dir"] == str(tmp_path / "full")
    assert run.data.metrics["eval_loss"] == one.metrics["eval_loss_last"] > float(value)
    assert run.data.params["hidden_size"] == "32"


def test_an_adapter_is_noted_as_one_with_its_base(base: Path, tracked: str, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", lora=True)
    one = found(tracked)["adapter"]
    assert (one.kind, one.base, one.base_sha256) == ("lora", str(base), weights_sha256(base))
    assert run_of(tracked, "adapter").data.tags["mergeops.kind"] == "lora"


def test_it_joins_the_active_run_and_leaves_it_open(
    base: Path, tracked: str, tmp_path: Path
) -> None:
    import mlflow

    mlflow.set_experiment("ft")
    with mlflow.start_run(run_name="mine") as mine:
        train(base, tmp_path / "joined")
        assert mlflow.get_run(mine.info.run_id).info.status == "RUNNING"
    assert found(tracked)["mine"].step == 4


def test_settings_that_the_run_has_already_stay_and_hold_up_nothing(
    base: Path, tracked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    mlflow.set_experiment("ft")
    with caplog.at_level(logging.WARNING, "mergeops"), mlflow.start_run(run_name="mine") as mine:
        mlflow.log_param("learning_rate", "2e-5")
        for name in ("first", "second"):
            train(base, tmp_path / name)
            run = mlflow.get_run(mine.info.run_id)
            assert run.data.tags["mergeops.output_dir"] == str(tmp_path / name)
            assert run.data.tags["mergeops.checkpoints"] == "checkpoint-2 checkpoint-4"
            assert run.data.params["learning_rate"] == "2e-5"
            assert run.data.params["output_dir"] == str(tmp_path / "first")
    history = mlflow.MlflowClient().get_metric_history(mine.info.run_id, "eval_loss")
    assert [metric.step for metric in history] == [2, 4, 2, 4]
    assert [record for record in caplog.records if record.name == "mergeops"] == []


def test_runs_that_share_an_output_directory_are_told_apart_by_the_notes(
    base: Path, tracked: str, tmp_path: Path
) -> None:
    train(base, tmp_path / "shared", seed=1)
    train(base, tmp_path / "shared", seed=2)
    last, first = discover("ft", tracking_uri=tracked)
    assert last.problem is None
    assert f"checkpoint-4 was written by run {last.run_id}" in str(first.problem)


@pytest.mark.parametrize(
    ("how", "report_to", "status"),
    [("kill", "none", "RUNNING"), ("raise", "mlflow", "FAILED")],
)
def test_a_crash_leaves_a_run_that_can_be_adopted(
    how: str, report_to: str, status: str, base: Path, tracked: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "out"), how, report_to]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == (-signal.SIGKILL if how == "kill" else 1), done.stderr
    one = found(tracked)[how]
    assert (one.problem, one.status, one.step) == (None, status, 4)
    assert one.base == str(base)
    assert one.found_by["checkpoint"].startswith("tag mergeops.output_dir; ")


def test_a_server_that_is_away_is_warned_of_once_and_training_goes_on(
    base: Path,
    tracked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import mlflow

    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "mergeops"):
        train(base, tmp_path / "away")
    assert (tmp_path / "away/checkpoint-4/model.safetensors").is_file()
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "mergeops"]
    assert "cannot be logged to MLflow" in warning and "refused" in warning
    assert "training goes on" in warning


def test_a_note_that_cannot_be_written_does_not_stop_training(
    base: Path,
    tracked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mergeops.adoption import callback

    def refuse(*args: Any) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(callback, "write_note", refuse)
    train(base, tmp_path / "full")
    assert found(tracked)["full"].step == 4
    assert [r.getMessage() for r in caplog.records if r.name == "mergeops"] != []


class Flaky:
    """A client that fails as often as it is told to."""

    tracking_uri = "sqlite://"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.tags: dict[str, str] = {}
        self.metrics: list[float] = []
        self.status = ""
        self.gate = threading.Event()
        self.gate.set()

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.gate.wait(5)
        if self.failures:
            self.failures -= 1
            raise OSError("connection lost")
        self.tags |= {tag.key: tag.value for tag in tags}
        self.metrics += [metric.value for metric in metrics]

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


def test_facts_that_did_not_arrive_come_with_the_next_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client: Any = Flaky(failures=2)
    courier = Courier(lambda: client, lambda _: "run")
    courier.send(tags={"a": "1", "b": "1"}, metrics=[("loss", 3.0, 1, 0)])
    assert not courier.wait(5)
    courier.send(tags={"b": "2"})
    assert not courier.wait(5)
    courier.send(metrics=[("loss", 2.0, 2, 0)], status="FINISHED")
    assert courier.wait(5)
    assert client.tags == {"a": "1", "b": "2"}
    assert (client.metrics, client.status) == ([3.0, 2.0], "FINISHED")
    assert len(caplog.records) == 1


def test_the_training_log_shows_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Any:
        raise OSError("no answer from http://bob:hunter2@mlflow.example:5000/?token=hunter2")

    courier = Courier(refuse, lambda _: "run")
    courier.send(tags={"a": "1"})
    assert not courier.wait(5)
    callback = MergeReadyCallback()
    callback._warn(OSError("cannot open postgresql://bob:hunter2@db/mlflow"))
    told = [record.getMessage() for record in caplog.records if record.name == "mergeops"]
    assert "(no answer from http://mlflow.example:5000/?token=***)" in told[0]
    assert "(cannot open postgresql://db/mlflow)" in told[1]
    assert "hunter2" not in caplog.text


def test_handing_over_facts_never_waits_for_the_server() -> None:
    client: Any = Flaky(failures=0)
    client.gate.clear()
    courier = Courier(lambda: client, lambda _: "run")
    for step in range(50):
        courier.send(metrics=[("loss", float(step), step, 0)])
    assert client.metrics == []
    assert not courier.wait(0.01)
    client.gate.set()
    assert courier.wait(5)
    assert client.metrics == [float(step) for step in range(50)]


def test_a_port_that_nobody_listens_at_is_refused_at_once() -> None:
    with pytest.raises(OSError, match="refused"):
        check_answers("http://127.0.0.1:9")
    check_answers("sqlite:///mlflow.db")


def test_only_the_hubs_own_file_names_stand_for_their_digests(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.checkpoint.digest import file_sha256
    from mergeops.sources import run_note

    digest = file_sha256(base / "model.safetensors")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / digest).symlink_to(base / "model.safetensors")
    blob = tmp_path / "blobs" / ("f" * 64)
    blob.write_bytes(b"never read")
    (tmp_path / "snapshot/model.safetensors").symlink_to(blob)
    named = run_note.cheap_sha256(tmp_path / "snapshot")
    assert named is not None and named != run_note.cheap_sha256(base) == weights_sha256(base)
    monkeypatch.setattr(run_note, "HASHED_BYTES", 10)
    assert run_note.cheap_sha256(base) is None
    assert run_note.cheap_sha256(tmp_path) is None


def searched_and_trained_twice(base: Path, output: Path, how: str, report_to: str) -> None:
    """Three trainings by one Trainer: three calls of train(), or a search of three trials."""
    import itertools

    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    rows = [{"input_ids": [1, 5 + i, 7, 2], "labels": [1, 5 + i, 7, 2]} for i in range(8)]
    rates = itertools.count(1)
    trainer = Trainer(
        model_init=lambda trial=None: AutoModelForCausalLM.from_pretrained(base),
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=2,
            save_steps=1,
            # The first checkpoint comes before the first log, by which MLflow makes its run.
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            per_device_train_batch_size=2,
            report_to=report_to,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows[:2],
        callbacks=[MergeReadyCallback()],
    )
    if how == "search":
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1)},
            backend="optuna",
            n_trials=3,
        )
        return
    for _ in range(3):
        trainer.args.learning_rate = 1e-3 * next(rates)
        trainer.args.output_dir = f"{output}/{next(rates)}"
        trainer.train()


@pytest.mark.parametrize("report_to", ["mlflow", "none"])
@pytest.mark.parametrize("how", ["again", "search"])
def test_each_training_of_one_trainer_has_one_run_with_its_own_checkpoint(
    how: str, report_to: str, base: Path, tracked: str, tmp_path: Path
) -> None:
    if how == "search":
        pytest.importorskip("optuna")
    searched_and_trained_twice(base, tmp_path / "out", how, report_to)
    runs = discover("ft", tracking_uri=tracked)
    assert len(runs) == 3
    assert [one.problem for one in runs] == [None] * 3
    assert len({one.checkpoint for one in runs}) == 3
    assert {(one.step, one.base) for one in runs} == {(2, str(base))}
    for one in runs:
        assert "train_loss" in one.metrics
        note = Path(str(one.checkpoint)).with_name("checkpoint-1") / "mergeops_run.json"
        assert one.run_id in note.read_text()


def test_a_training_that_went_on_after_a_crash_in_a_notebook_is_not_marked_as_failed(
    base: Path, tracked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    mlflow.set_experiment("ft")
    crashed = MergeReadyCallback()
    with mlflow.start_run(run_name="cell") as run:
        crashed._last_of_run[run.info.run_id] = crashed._courier = Courier(
            lambda: mlflow.MlflowClient(), lambda _: "", run_id=run.info.run_id
        )
        # What IPython keeps of the cell that raised.
        monkeypatch.setattr(sys, "last_value", RuntimeError("loss is NaN"), raising=False)
        train(base, tmp_path / "again")
    crashed._at_exit()
    assert run_of(tracked, "cell").info.status == "FINISHED"


@pytest.mark.parametrize(
    ("revision", "peft_type", "kind", "base"),
    [
        (None, None, "full", f"org/base@{'c' * 40}"),
        (None, "LOHA", "loha", f"org/base@{'c' * 40}"),
        ("v1", "LORA", "lora", f"org/base@{'c' * 40}"),
    ],
)
def test_the_base_is_noted_with_its_commit_and_the_adapter_with_its_kind(
    revision: str | None, peft_type: str | None, kind: str, base: str
) -> None:
    from types import SimpleNamespace

    from mergeops.adoption import callback

    adapter = SimpleNamespace(
        base_model_name_or_path="org/base", revision=revision, peft_type=peft_type
    )
    model = SimpleNamespace(
        config=SimpleNamespace(_name_or_path="org/base", _commit_hash="c" * 40),
        peft_config={"default": adapter} if peft_type else {},
    )
    assert (callback._kind_of(model), callback._base_of(model)) == (kind, base)
