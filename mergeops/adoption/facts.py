"""What is known of a found checkpoint, and from where: base model, architecture, losses.

Params are what each trainer's MLflow integration really logs; values are Python ``str()``.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.adapters import AdapterConfig, in_full_precision
from mergeops.checkpoint import ADAPTER_CONFIG, CONFIG, Quantisation, quantisation_of
from mergeops.errors import SourceError
from mergeops.sources import (
    CheckpointChoice,
    LocalDirectory,
    RunTags,
    Said,
    TrainingRuns,
    cached,
    cheap_sha256,
    config_artifacts,
    is_finite,
    is_hub_name,
    is_set,
    logged_values,
    read_json,
    snapshot_name,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

BASE_PARAMS = (
    "_name_or_path",
    "model.pretrained_model_name_or_path",
    "checkpointer.checkpoint_dir",
    "base_model",
    "actor_rollout_ref/model/path",
    "model_name_or_path",
)
"""HF Trainer; NeMo Automodel; torchtune; Axolotl; verl; older scripts."""
SHAPE_PARAMS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
LOSSES = ("loss", "eval_loss", "train_loss")
SILENT_AFTER_S = 3600


@dataclass(frozen=True)
class Architecture:
    """What kind of model it is."""

    architectures: tuple[str, ...]
    shape: Mapping[str, int] = field(default_factory=dict)
    found_by: str = ""
    quantisation: Quantisation | None = None
    """How its weights are coded, where that is known and they are not simply numbers."""


def base(
    store: TrainingRuns, run: Run, choice: CheckpointChoice, adapter: AdapterConfig | None
) -> Said | None:
    """The model that was fine-tuned: a directory on this machine, or what the run calls it; with
    the commit, where anybody noted it: ORG/NAME@REVISION.

    The run's tag wins, then an adapter's own config, then what MLflow noted of the model that it
    logged, then what the trainer logged.
    """
    said = _tagged_base(run)
    own = None if adapter is None else adapted(choice, adapter)
    if said is None or (own is not None and own.path.startswith(f"{said.path}@")):
        said = own or said
    said = said or _base_param(run.data.params) or _configured_base(store, run)
    if said is None:
        return None
    found = _directory(store, run, choice, said.path)
    # What a 4-bit repository (Unsloth) is fine-tuned to merges with its 16-bit twin.
    name = said.path.partition("@")[0] if is_hub_name(said.path) else said.path
    twin = in_full_precision(name)
    if twin != name:
        twin_found = _directory(store, run, choice, twin)
        if twin_found is not None or found is None:
            said = Said(twin, f"{said.found_by} without its 4-bit suffix")
            found = twin_found
    snapshot = snapshot_name(found or said.path)
    if snapshot is not None and (found is None or cached(snapshot) is not None):
        return Said(snapshot, said.found_by)
    return Said(found, said.found_by) if found is not None else said


def adapted(choice: CheckpointChoice, adapter: AdapterConfig) -> Said | None:
    """What an adapter calls its base, with the revision that it or MLflow noted."""
    name, noted = adapter.base_name, choice.location
    said, revision = Said(name or noted.base or "", ADAPTER_CONFIG), adapter.revision
    if name is None:
        said = Said(said.path, "MLmodel")
    if not said.path:
        return None
    if revision is None and said.path == noted.base:
        revision = noted.base_revision
    is_pinned = revision is not None and is_hub_name(said.path)
    return Said(f"{said.path}@{revision}", said.found_by) if is_pinned else said


def _directory(store: TrainingRuns, run: Run, choice: CheckpointChoice, path: str) -> str | None:
    """Where a logged path is on this machine. The current directory is believed only where the
    run's own facts say that the training ran in it: its losses, or the base's digest."""
    for place, is_here in store.nearby(path):
        if not place.is_dir():
            continue
        digest = run.data.tags.get(RunTags.BASE_SHA256)
        is_told = digest is not None and digest == cheap_sha256(place)
        if not is_here or choice.candidate.needs_proof or is_told:
            return str(place.resolve())
    return None


def architecture(run: Run, choice: CheckpointChoice, base: Said | None) -> Architecture:
    """From the checkpoint's config.json, else the base's, else the params of the run."""
    if choice.pieces is not None and choice.kind == "full" and (own := beside(choice, CONFIG)):
        return _of_config(own, CONFIG)
    if choice.pieces is None and choice.kind == "full":
        return _of_config(read_json(choice.directory, CONFIG) or {}, CONFIG, choice.directory.local)
    if base is not None and (path := here(base.path)) is not None:
        config = read_json(LocalDirectory(path), CONFIG)
        if config:
            return _of_config(config, f"{CONFIG} of the base", path)
    return _of_params(run.data.params)


def beside(choice: CheckpointChoice, name: str) -> dict[str, Any]:
    """A JSON file of a checkpoint: in its directory or, of pieces, in their own or in the one that
    verl keeps the config in; empty where there is none."""
    places = [choice.directory]
    if choice.pieces is not None:
        places += [choice.pieces.place, choice.pieces.place.inside("huggingface")]
    return next((found for place in places if (found := read_json(place, name))), {})


def here(base: str) -> Path | None:
    """The base's directory on this machine: itself, or in the hub's cache."""
    if Path(base).is_absolute():
        return Path(base) if Path(base).is_dir() else None
    return cached(base) if is_hub_name(base) else None


def logged(run: Run) -> dict[str, Any]:
    """What the run's tags and params say where no checkpoint was found: kind, base, architecture,
    shape, and where each was read."""
    known: dict[str, Any] = {}
    found_by = {}
    kind = run.data.tags.get(RunTags.KIND)
    if kind:
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


def last_sign_ms(run: Run) -> int:
    """When a run logged last, in milliseconds since 1970: a metric, or that it began."""
    logged = [int(metric.timestamp) for metric in run.data._metric_objs or []]
    return max([int(run.info.start_time or 0), *logged])


def is_silent(run: Run) -> bool:
    """Whether it is RUNNING without a sign of life."""
    return str(run.info.status) == "RUNNING" and (
        time.time() - last_sign_ms(run) / 1000 > SILENT_AFTER_S
    )


def metrics(run: Run, choice: CheckpointChoice | None) -> dict[str, float]:
    """Losses by name: ``eval_loss`` at the checkpoint's step, ``eval_loss_best`` and
    ``eval_loss_last``, the run's last ``loss`` and ``train_loss``, and the metric that the
    checkpoint was chosen by; non-finite ones are left out."""
    last = run.data.metrics
    history = logged_values(choice.state, "eval_loss") if choice is not None else {}
    losses = {
        "eval_loss": history.get(choice.step or -1) if choice is not None else None,
        "eval_loss_best": min(history.values(), default=None),
        "eval_loss_last": last.get("eval_loss"),
        "loss": last.get("loss"),
        "train_loss": last.get("train_loss"),
    }
    if choice is not None and choice.value is not None:
        losses |= dict([choice.value])
    return {
        name: float(value)
        for name, value in losses.items()
        if value is not None and is_finite(value)
    }


def not_finite(run: Run) -> tuple[str, ...]:
    """The run's losses that ended as no number: it diverged."""
    last = run.data.metrics
    return tuple(sorted(name for name in LOSSES if name in last and not is_finite(last[name])))


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


def _of_config(config: Mapping[str, Any], found_by: str, path: Path | None = None) -> Architecture:
    named = config.get("architectures")
    named = [named] if isinstance(named, str) else named
    shape = {
        key: config[key]
        for key in SHAPE_PARAMS
        if isinstance(config.get(key), int) and not isinstance(config[key], bool)
    }
    return Architecture(tuple(str(n) for n in named or []), shape, found_by, _coded(path))


def _coded(path: Path | None) -> Quantisation | None:
    try:
        return quantisation_of(path) if path is not None else None
    except SourceError:
        # Pickled, or cut: whoever reads the weights says so.
        return None
