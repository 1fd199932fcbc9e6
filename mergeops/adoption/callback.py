"""Two lines in a training script, and ``mergeops adopt`` has nothing to guess.

from mergeops import MergeReadyCallback
trainer = Trainer(..., callbacks=[MergeReadyCallback()])
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from mergeops.adoption.courier import Courier
from mergeops.adoption.facts import SHAPE_PARAMS
from mergeops.adoption.settings_beside import write_settings
from mergeops.redact import redacted_line
from mergeops.sources import (
    TRAINER_STATE,
    RunTags,
    cached,
    cheap_sha256,
    is_hub_name,
    write_note,
)
from mergeops.store import new_client

PATIENCE_S = 15
"""How long the end of training may wait for the last facts to arrive."""
START_S = 5
"""How long the first step may wait for a new run, which a crash right after it must not miss."""
LOGGED_ARGUMENTS = (
    "output_dir",
    "run_name",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "warmup_steps",
    "seed",
    "metric_for_best_model",
    "greater_is_better",
)


def _never_breaks_training(hook: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(hook)
    def call(self: MergeReadyCallback, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if not state.is_world_process_zero:
            return
        try:
            hook(self, args, state, **rest)
        except Exception as error:
            self._warn(error)

    return call


class MergeReadyCallback(TrainerCallback):  # type: ignore[misc]
    """Notes in MLflow what a merge of this run needs to know: the base and its weights' digest,
    where checkpoints lie, which is the best, adapter or full.

    With ``report_to="mlflow"`` it adds tags to the Trainer's run. Without, it joins the active run,
    or makes one, and logs the losses and the main settings too. Each checkpoint gets a small file
    that names its run, so that runs which share an output directory are told apart. A training
    that ends with an exception leaves a FAILED run, one that is interrupted a KILLED one. Nothing
    here can stop training: a server that is away is warned of once. Only two waits are possible: up
    to 5 s before the first step, for a run that the callback has to make, and up to 15 s at the
    end, for the last facts.

    Args:
        experiment: for a run that the callback makes; default MLFLOW_EXPERIMENT_NAME, else
            MLflow's own default.
    """

    _last_of_run: ClassVar[dict[str, Courier]] = {}
    """Run id -> who sent to it last, of this process's trainings."""

    def __init__(self, experiment: str | None = None) -> None:
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        self._courier: Courier | None = None
        self._is_started = False
        self._owns_run = False
        self._logs_metrics = False
        self._has_warned = False
        self._saved: list[Path] = []
        self._without_note: list[Path] = []
        self._metrics: dict[int, float] = {}
        self._base: str | None = None
        self._tags: dict[str, str] = {}
        self._params: dict[str, str] = {}

    @_never_breaks_training
    def on_train_begin(self, args: Any, state: Any, **rest: Any) -> None:
        """A new training, maybe with the same callback."""
        if self._courier is not None and self._owns_run and self._is_started:
            # In a notebook the process outlives a training that ended with an exception.
            self._courier.send(status=_how_it_ended(getattr(sys, "last_value", None)))
        self._is_started = False
        self._courier = None
        self._saved = []
        self._without_note = []
        self._metrics = {}

    @_never_breaks_training
    def on_step_begin(self, args: Any, state: Any, model: Any = None, **rest: Any) -> None:
        """Before the first step: by then every other callback has made its run."""
        if self._is_started:
            return
        self._is_started = True
        self._logs_metrics = "mlflow" not in args.report_to
        self._base = _base_of(model)
        self._params = _params(args, model)
        self._tags = {
            RunTags.OUTPUT_DIR: str(Path(args.output_dir).absolute()),
            RunTags.HOST: socket.gethostname(),
            RunTags.KIND: _kind_of(model),
        }
        if self._base:
            self._tags[RunTags.BASE] = self._base
        self._join(args, is_first_step=True)

    def _join(self, args: Any, *, is_first_step: bool = False) -> Courier | None:
        """The courier of this training's run; None as long as MLflow's own callback is still to
        make it: in a second training it does so with the first log, and without params."""
        if self._courier is not None or not self._is_started:
            return self._courier
        import mlflow

        active = mlflow.active_run()
        run_id = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
        if run_id is None and not self._logs_metrics:
            return None
        self._owns_run = run_id is None
        uri, name, experiment = (
            mlflow.get_tracking_uri(),
            str(args.run_name or ""),
            self._experiment,
        )
        self._courier = Courier(
            lambda: new_client(uri),
            lambda client: _new_run(client, experiment, name),
            run_id=run_id,
            collect=functools.partial(_base_digest, self._base),
        )
        if run_id is not None:
            self._last_of_run[run_id] = self._courier
        wants_params = self._logs_metrics or not is_first_step
        self._courier.send(self._tags, self._params if wants_params else None)
        self._note_saved(args)
        atexit.register(self._at_exit)
        if run_id is None:
            self._courier.wait(START_S)
        return self._courier

    @_never_breaks_training
    def on_log(self, args: Any, state: Any, logs: Mapping[str, Any], **rest: Any) -> None:
        """Losses, where nobody else logs them."""
        courier = self._join(args)
        if courier is None or not self._logs_metrics:
            return
        now = int(time.time() * 1000)
        courier.send(
            metrics=[
                (re.sub(r"[^\w\-. :/]", "_", name), float(value), int(state.global_step), now)
                for name, value in logs.items()
                if isinstance(value, int | float)
            ]
        )

    @_never_breaks_training
    def on_evaluate(self, args: Any, state: Any, metrics: Mapping[str, Any], **rest: Any) -> None:
        """Remember the metric that tells the best checkpoint."""
        value = metrics.get(_metric_name(args))
        if isinstance(value, int | float):
            self._metrics[int(state.global_step)] = float(value)

    @_never_breaks_training
    def on_save(self, args: Any, state: Any, model: Any = None, **rest: Any) -> None:
        """A checkpoint is whole: note whose it is, and which is the best by now."""
        checkpoint = _checkpoint_of(args, state)
        if checkpoint is None or not self._is_started:
            return
        write_settings(checkpoint, model)
        self._saved = [path for path in self._saved if path.is_dir() and path != checkpoint]
        self._saved.append(checkpoint)
        self._without_note.append(checkpoint)
        self._tags[RunTags.OUTPUT_DIR] = str(checkpoint.parent)
        if self._join(args) is not None:
            self._note_saved(args)

    def _note_saved(self, args: Any) -> None:
        """Say in each checkpoint whose it is, and in the run what is there."""
        courier = self._courier
        if courier is None or not self._saved:
            return
        tags = {
            RunTags.OUTPUT_DIR: self._tags[RunTags.OUTPUT_DIR],
            RunTags.CHECKPOINTS: " ".join(path.name for path in self._saved[-100:]),
        }
        courier.send(tags | self._best(args))
        while courier.run_id and self._without_note:
            path = self._without_note.pop()
            known = {**self._tags, **courier.collected}
            base = {key: known[key] for key in (RunTags.BASE, RunTags.BASE_SHA256) if key in known}
            write_note(path, courier.run_id, _step(path), base)

    @_never_breaks_training
    def on_train_end(self, args: Any, state: Any, **rest: Any) -> None:
        """Let the last facts arrive."""
        self._is_started = False
        if self._courier is None:
            return
        atexit.unregister(self._at_exit)
        self._courier.send(status="FINISHED" if self._owns_run else None)
        self._courier.wait(PATIENCE_S)

    def _best(self, args: Any) -> dict[str, str]:
        name = _metric_name(args)
        greater = args.greater_is_better
        if greater is None:
            greater = not name.endswith("loss")
        known = {p.name: self._metrics.get(_step(p)) for p in self._saved}
        scored = {path: value for path, value in known.items() if value is not None}
        if not scored:
            return {}
        best = (max if greater else min)(scored, key=lambda path: scored[path])
        return {RunTags.BEST: best, RunTags.BEST_METRIC: f"{name}={scored[best]!r}"}

    def _at_exit(self) -> None:
        # The Trainer and MLflow end the run of a crashed training as FINISHED.
        import mlflow

        courier = self._courier
        if courier is None or self._last_of_run.get(str(courier.run_id), courier) is not courier:
            return
        raised = getattr(sys, "last_value", None)
        if raised is None and not self._owns_run:
            # The script caught the exception: whoever made the run says how it ended.
            return
        status = _how_it_ended(raised)
        courier.send(status=status)
        arrived = courier.wait(PATIENCE_S)
        active = mlflow.active_run()
        if arrived and active is not None and active.info.run_id == courier.run_id:
            mlflow.end_run(status)

    def _warn(self, error: Exception) -> None:
        if self._courier is not None:
            self._courier.warn(error)
        elif not self._has_warned:
            self._has_warned = True
            logging.getLogger("mergeops").warning(
                "mergeops: this run is not noted for merging (%s); training goes on",
                redacted_line(error),
            )


def _how_it_ended(raised: object) -> str:
    """The status of a run whose training did not end."""
    return "KILLED" if isinstance(raised, KeyboardInterrupt) else "FAILED"


def _kind_of(model: Any) -> str:
    """full, or the kind of the adapter that is trained, as its config will say it."""
    configs = list((getattr(model, "peft_config", None) or {}).values())
    if not configs:
        return "full"
    word = getattr(configs[0].peft_type, "value", configs[0].peft_type)
    return "dora" if getattr(configs[0], "use_dora", False) else str(word).lower()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoint_of(args: Any, state: Any) -> Path | None:
    """What the Trainer has just saved; a trial of a search has a directory of its own."""
    output, name = Path(args.output_dir).absolute(), f"checkpoint-{state.global_step}"
    if not state.is_hyper_param_search:
        return output / name if (output / name).is_dir() else None
    saved = [path for path in output.glob(f"*/{name}") if (path / TRAINER_STATE).is_file()]
    newest = max(saved, key=lambda path: (path / TRAINER_STATE).stat().st_mtime_ns, default=None)
    return newest


def _base_of(model: Any) -> str | None:
    """The model that is trained: an absolute path where it is a directory here, else as named, and
    with the hub's commit."""
    adapters = list((getattr(model, "peft_config", None) or {}).values())
    named = [getattr(config, "base_model_name_or_path", None) for config in adapters]
    own = getattr(model, "config", None)
    named.append(getattr(own, "_name_or_path", None))
    said = next((name for name in named if name), None)
    if said is None:
        return None
    if Path(said).is_dir():
        return str(Path(said).resolve())
    revisions = [getattr(own, "_commit_hash", None)]
    revisions += [getattr(config, "revision", None) for config in adapters]
    revision = next((revision for revision in revisions if revision), None)
    is_pinned = revision is not None and is_hub_name(str(said))
    return f"{said}@{revision}" if is_pinned else str(said)


def _base_digest(base: str | None) -> dict[str, str]:
    """The tag of the base's digest, where that is cheap to get."""
    if base is None:
        return {}
    path = Path(base) if Path(base).is_dir() else cached(base)
    digest = cheap_sha256(path) if path is not None else None
    return {RunTags.BASE_SHA256: digest} if digest else {}


def _new_run(client: Any, experiment: str, name: str) -> str:
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else client.create_experiment(experiment)
    return str(client.create_run(experiment_id, run_name=name or None).info.run_id)


def _params(args: Any, model: Any) -> dict[str, str]:
    """What adopt and a reader want to know of a run that the Trainer does not log itself."""
    config = model.config.to_dict() if hasattr(model, "config") else {}
    config["_name_or_path"] = getattr(getattr(model, "config", None), "_name_or_path", None)
    wanted = ("_name_or_path", "architectures", "model_type", *SHAPE_PARAMS)
    params = {key: config[key] for key in wanted if config.get(key) is not None}
    params |= {key: getattr(args, key) for key in LOGGED_ARGUMENTS if hasattr(args, key)}
    return {key: str(getattr(value, "value", value))[:6000] for key, value in params.items()}


def _metric_name(args: Any) -> str:
    name = str(args.metric_for_best_model or "loss")
    return name if name.startswith("eval_") else f"eval_{name}"
