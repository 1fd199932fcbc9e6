"""One fine-tuning run as a team would do it: HF Trainer, its own MLflow callback, checkpoints.

``work`` is the body of a worker process: it imports the heavy libraries at module top because the
fork server imports this module once, and every worker starts from there.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import RLock
from types import FrameType
from typing import Any

import mlflow
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from demo.runs import FineTune
from demo.skills import Item, mixture

IGNORED_LABEL = -100
VALIDATION_ITEMS = 128
LOG_EVERY = 5
# A loss beyond twice the lowest one so far, and this much more, will not come back.
SLACK = 0.5


class LossDivergedError(RuntimeError):
    """The training loss has left the range from which a run recovers."""


class PreemptedError(RuntimeError):
    """The scheduler wants the machine back."""


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to do one run."""

    run: FineTune
    base: Path
    output: Path
    """Where the checkpoints go."""
    experiment: str
    tracking_uri: str
    tags: dict[str, str]
    log: Path
    """Where the worker's stdout and stderr go."""


def work(job: Job, progress: Connection) -> None:
    """Train in this process; send ("run", id) once and ("step", n) after each step.

    Ends with exit status 1 where training fails and by SIGTERM where it was killed, and leaves the
    MLflow run FAILED or KILLED, as a scheduler's wrapper does.
    """
    with job.log.open("w", encoding="utf-8", buffering=1) as log:
        sys.stdout = sys.stderr = log
        torch.set_num_threads(1)
        # tqdm's default lock is a semaphore, which a killed process would leave behind.
        tqdm.set_lock(RLock())
        stop = _Stop()
        signal.signal(signal.SIGTERM, stop)
        os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = str(int(job.run.log_checkpoints))
        mlflow.set_tracking_uri(job.tracking_uri)
        mlflow.set_experiment(job.experiment)
        active = mlflow.start_run(run_name=job.run.name, tags=job.tags)
        progress.send(("run", active.info.run_id))
        try:
            _train(job, [_Progress(progress), stop, _LossGuard()])
        except PreemptedError:
            mlflow.end_run(status="KILLED")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            traceback.print_exc()
            mlflow.end_run(status="FAILED")
            sys.exit(1)
        mlflow.end_run()


def _train(job: Job, callbacks: list[TrainerCallback]) -> None:
    run = job.run
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    # In bfloat16, steps of this size would be rounded away.
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    if run.adapter:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(run.seed)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    failing = run.status != "FINISHED"
    arguments = TrainingArguments(
        output_dir=str(job.output),
        run_name=run.name,
        report_to="mlflow",
        max_steps=run.steps,
        per_device_train_batch_size=run.batch,
        per_device_eval_batch_size=run.batch,
        learning_rate=run.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=run.steps if run.status == "FAILED" else run.steps // 10,
        max_grad_norm=0.0 if run.status == "FAILED" else 1.0,
        weight_decay=0.0,
        logging_steps=LOG_EVERY,
        eval_strategy="steps",
        eval_steps=run.steps // 2,
        save_steps=first_checkpoint(run) if failing else run.steps,
        save_only_model=True,
        use_cpu=True,
        disable_tqdm=True,
        seed=run.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=partial(collate, pad=tokenizer.pad_token_id),
        train_dataset=_rows(tokenizer, run, run.steps * run.batch, "train"),
        eval_dataset=_rows(tokenizer, run, VALIDATION_ITEMS, "validation"),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()


def first_checkpoint(run: FineTune) -> int:
    """The step of the one checkpoint that a failing run leaves behind."""
    return run.steps // 16 if run.status == "FAILED" else run.steps // 3


def _rows(
    tokenizer: PreTrainedTokenizerBase, run: FineTune, n: int, split: str
) -> list[dict[str, list[int]]]:
    return [encode(tokenizer, item) for item in mixture(run.shares, n, run.seed, split)]


class _Progress(TrainerCallback):
    def __init__(self, progress: Connection) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.send(("step", state.global_step))


class _Stop(TrainerCallback):
    """Remembers the signal until the step is over.

    A signal may arrive while MLflow holds a lock, so its handler must not call MLflow.
    """

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.wanted = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.wanted:
            raise PreemptedError(f"told to stop at step {state.global_step}")


class _LossGuard(TrainerCallback):
    """Stops a run that only burns time, as teams do."""

    def __init__(self) -> None:
        self.lowest = math.inf

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        # So written that NaN is caught too.
        if not loss <= 2 * self.lowest + SLACK:
            raise LossDivergedError(
                f"loss {loss:.3g} at step {state.global_step}, {self.lowest:.3g} before"
            )
        self.lowest = min(self.lowest, loss)


def encode(tokenizer: PreTrainedTokenizerBase, item: Item) -> dict[str, list[int]]:
    """Token ids of prompt, answer and end; only the answer and the end are learnt."""
    prompt = tokenizer(item.prompt)["input_ids"]
    ids = [*tokenizer(f"{item.prompt} {item.right}")["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * len(prompt) + ids[len(prompt) :]}


def collate(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Pad on the right: ``[n, longest]`` int64 ids, labels and attention mask."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([value + [filler] * (longest - len(value)) for value in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad),
        "labels": padded([row["labels"] for row in rows], IGNORED_LABEL),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
    }
