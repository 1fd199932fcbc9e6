"""What is known of a found checkpoint, and from where: base model, architecture, losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.sources.checkpoints import Choice, eval_losses, is_finite
from mergeops.sources.contents import ADAPTER_CONFIG, CONFIG
from mergeops.sources.logged_config import (
    SHAPE_PARAMS,
    Said,
    base_model,
    base_param,
    is_set,
    literal,
    sixteen_bit,
)
from mergeops.sources.place import LocalPlace, read_json
from mergeops.sources.run_note import BASE_TAG, KIND_TAG
from mergeops.sources.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Architecture:
    """What kind of model it is."""

    architectures: tuple[str, ...]
    shape: Mapping[str, int] = field(default_factory=dict)
    found_by: str = ""


def base(store: Store, run: Run, choice: Choice) -> Said | None:
    """The model that was fine-tuned: a directory on this machine, or what the run calls it.

    The run's tag wins, then an adapter's own config, then what the trainer logged.
    """
    said = _said_base(store, run, choice)
    if said is None:
        return None
    said = sixteen_bit(said)
    for path in store.nearby(said.path):
        if path.is_dir():
            return Said(str(path.resolve()), said.found_by)
    return said


def architecture(run: Run, choice: Choice, base: Said | None) -> Architecture:
    """From the checkpoint's config.json, else the base's, else the params of the run."""
    if choice.kind == "full":
        return _of_config(read_json(choice.candidate.place, CONFIG) or {}, CONFIG)
    if base is not None and Path(base.path).is_dir():
        config = read_json(LocalPlace(Path(base.path)), CONFIG)
        if config:
            return _of_config(config, f"{CONFIG} of the base")
    return _of_params(run.data.params)


def logged(run: Run) -> dict[str, Any]:
    """What the run's tags and params say where no checkpoint was found: kind, base, architecture,
    shape, and where each was read."""
    params = run.data.params
    tags = run.data.tags
    known: dict[str, Any] = {}
    found_by = {}
    if tags.get(KIND_TAG) in ("full", "lora"):
        known["kind"] = tags[KIND_TAG]
        found_by["kind"] = f"tag {KIND_TAG}"
    said = Said(tags[BASE_TAG], f"tag {BASE_TAG}") if tags.get(BASE_TAG) else base_param(params)
    if said is not None:
        known["base"] = said.path
        found_by["base"] = said.found_by
    one = _of_params(params)
    if one.architectures:
        known |= {"architectures": one.architectures, "shape": one.shape}
        found_by["architectures"] = one.found_by
    return {**known, "found_by": found_by}


def metrics(run: Run, state: Mapping[str, Any], step: int | None) -> dict[str, float]:
    """Losses by name: ``eval_loss`` at ``step``, ``eval_loss_best`` and ``eval_loss_last``, and the
    run's last ``loss`` and ``train_loss``; non-finite ones are left out."""
    logged = run.data.metrics
    history = eval_losses(state)
    found = {
        "eval_loss": history.get(step),
        "eval_loss_best": min(history.values(), default=None),
        "eval_loss_last": logged.get("eval_loss"),
        "loss": logged.get("loss"),
        "train_loss": logged.get("train_loss"),
    }
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and is_finite(value)
    }


def _said_base(store: Store, run: Run, choice: Choice) -> Said | None:
    tagged = run.data.tags.get(BASE_TAG)
    if tagged:
        return Said(tagged, f"tag {BASE_TAG}")
    if choice.kind == "lora":
        config = read_json(choice.candidate.place, ADAPTER_CONFIG) or {}
        said = config.get("base_model_name_or_path")
        if isinstance(said, str) and said:
            return Said(said, ADAPTER_CONFIG)
    return base_model(store, run)


def _of_params(params: Mapping[str, str]) -> Architecture:
    # Only these: reading 150 params of each of ten thousand runs would take half a minute.
    wanted = {key: params.get(key) for key in ("architectures", *SHAPE_PARAMS)}
    return _of_config({k: literal(v) for k, v in wanted.items() if is_set(v)}, "params")


def _of_config(config: Mapping[str, Any], found_by: str) -> Architecture:
    named = config.get("architectures")
    named = [named] if isinstance(named, str) else named
    shape = {
        key: config[key]
        for key in SHAPE_PARAMS
        if isinstance(config.get(key), int) and not isinstance(config[key], bool)
    }
    return Architecture(tuple(str(n) for n in named or []), shape, found_by)
