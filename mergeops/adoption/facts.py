"""What is known of a found checkpoint, and from where: base model, architecture, losses.

Params are what each trainer's MLflow integration really logs; values are Python ``str()``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint import ADAPTER_CONFIG, CONFIG
from mergeops.sources import (
    CheckpointChoice,
    LocalDirectory,
    RunTags,
    Said,
    TrainingRuns,
    config_artifacts,
    eval_losses,
    is_finite,
    is_set,
    read_json,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

BASE_PARAMS = (
    "_name_or_path",
    "model.pretrained_model_name_or_path",
    "checkpointer.checkpoint_dir",
    "base_model",
    "model_name_or_path",
)
"""HF Trainer; NeMo Automodel; torchtune; Axolotl; older scripts."""
SHAPE_PARAMS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)

_FOUR_BIT = re.compile(r"(-unsloth)?-bnb-4bit$")


@dataclass(frozen=True)
class Architecture:
    """What kind of model it is."""

    architectures: tuple[str, ...]
    shape: Mapping[str, int] = field(default_factory=dict)
    found_by: str = ""


def base(store: TrainingRuns, run: Run, choice: CheckpointChoice) -> Said | None:
    """The model that was fine-tuned: a directory on this machine, or what the run calls it.

    The run's tag wins, then an adapter's own config, then what the trainer logged.
    """
    said = _tagged_base(run)
    if said is None and choice.kind == "lora":
        config = read_json(choice.candidate.directory, ADAPTER_CONFIG) or {}
        named = config.get("base_model_name_or_path")
        if isinstance(named, str) and named:
            said = Said(named, ADAPTER_CONFIG)
    said = said or _base_param(run.data.params) or _configured_base(store, run)
    if said is None:
        return None
    # What a 4-bit repository (Unsloth) is fine-tuned to merges with its 16-bit twin.
    plain = _FOUR_BIT.sub("", said.path)
    if plain != said.path:
        said = Said(plain, f"{said.found_by} without its 4-bit suffix")
    for path in store.nearby(said.path):
        if path.is_dir():
            return Said(str(path.resolve()), said.found_by)
    return said


def architecture(run: Run, choice: CheckpointChoice, base: Said | None) -> Architecture:
    """From the checkpoint's config.json, else the base's, else the params of the run."""
    if choice.kind == "full":
        return _of_config(read_json(choice.candidate.directory, CONFIG) or {}, CONFIG)
    if base is not None and Path(base.path).is_dir():
        config = read_json(LocalDirectory(Path(base.path)), CONFIG)
        if config:
            return _of_config(config, f"{CONFIG} of the base")
    return _of_params(run.data.params)


def logged(run: Run) -> dict[str, Any]:
    """What the run's tags and params say where no checkpoint was found: kind, base, architecture,
    shape, and where each was read."""
    known: dict[str, Any] = {}
    found_by = {}
    kind = run.data.tags.get(RunTags.KIND)
    if kind in ("full", "lora"):
        known["kind"] = kind
        found_by["kind"] = f"tag {RunTags.KIND}"
    said = _tagged_base(run) or _base_param(run.data.params)
    if said is not None:
        known["base"] = said.path
        found_by["base"] = said.found_by
    model = _of_params(run.data.params)
    if model.architectures:
        known |= {"architectures": model.architectures, "shape": model.shape}
        found_by["architectures"] = model.found_by
    return {**known, "found_by": found_by}


def metrics(run: Run, state: Mapping[str, Any], step: int | None) -> dict[str, float]:
    """Losses by name: ``eval_loss`` at ``step``, ``eval_loss_best`` and ``eval_loss_last``, and the
    run's last ``loss`` and ``train_loss``; non-finite ones are left out."""
    last = run.data.metrics
    history = eval_losses(state)
    losses = {
        "eval_loss": history.get(step),
        "eval_loss_best": min(history.values(), default=None),
        "eval_loss_last": last.get("eval_loss"),
        "loss": last.get("loss"),
        "train_loss": last.get("train_loss"),
    }
    return {
        name: float(value)
        for name, value in losses.items()
        if value is not None and is_finite(value)
    }


def _tagged_base(run: Run) -> Said | None:
    tagged = run.data.tags.get(RunTags.BASE)
    return Said(tagged, f"tag {RunTags.BASE}") if tagged else None


def _base_param(params: Mapping[str, str]) -> Said | None:
    for key in BASE_PARAMS:
        if is_set(params.get(key)):
            return Said(params[key], f"param {key}")
    return None


def _configured_base(store: TrainingRuns, run: Run) -> Said | None:
    for name, config in config_artifacts(store, run):
        checkpointer = config.get("checkpointer")
        base = config.get("base_model") or (
            checkpointer.get("checkpoint_dir") if isinstance(checkpointer, Mapping) else None
        )
        if isinstance(base, str) and base:
            return Said(base, f"artifact {name}")
    return None


def _of_params(params: Mapping[str, str]) -> Architecture:
    # Only these: reading 150 params of each of ten thousand runs would take half a minute.
    wanted = {key: params.get(key) for key in ("architectures", *SHAPE_PARAMS)}
    return _of_config({k: _literal(v) for k, v in wanted.items() if v and is_set(v)}, "params")


def _literal(value: str) -> Any:
    """The Python value whose ``str()`` was logged; the text itself where it is none."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _of_config(config: Mapping[str, Any], found_by: str) -> Architecture:
    named = config.get("architectures")
    named = [named] if isinstance(named, str) else named
    shape = {
        key: config[key]
        for key in SHAPE_PARAMS
        if isinstance(config.get(key), int) and not isinstance(config[key], bool)
    }
    return Architecture(tuple(str(n) for n in named or []), shape, found_by)
