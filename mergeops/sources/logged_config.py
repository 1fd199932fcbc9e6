"""What a run's params and logged config files say: output directory, base model, architecture.

Params are what each trainer's MLflow integration really logs; values are Python ``str()``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError
from mergeops.sources.place import Place
from mergeops.sources.run_note import OUTPUT_DIR_TAG
from mergeops.sources.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

OUTPUT_PARAMS = ("output_dir", "checkpoint.checkpoint_dir", "checkpointer.output_dir")
"""HF Trainer and torchtune; NeMo Automodel; torchtune's checkpointer."""
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

_AXOLOTL = re.compile(r"^axolotl_config_.*\.ya?ml$")
_TORCHTUNE = "torchtune_config.yaml"
_FOUR_BIT = re.compile(r"(-unsloth)?-bnb-4bit$")


@dataclass(frozen=True)
class Said:
    """One fact and where the run says it."""

    path: str
    found_by: str


def output_directories(store: Store, run: Run) -> list[Said]:
    """The directories that the trainer wrote to, as logged."""
    params = run.data.params
    tagged = run.data.tags.get(OUTPUT_DIR_TAG)
    if tagged:
        return [Said(tagged, f"tag {OUTPUT_DIR_TAG}")]
    found = [Said(params[key], f"param {key}") for key in OUTPUT_PARAMS if is_set(params.get(key))]
    if not found:
        found = [
            Said(str(config["output_dir"]), f"artifact {name}")
            for name, config in config_artifacts(store, run)
            if isinstance(config.get("output_dir"), str)
        ]
    return found


def base_model(store: Store, run: Run) -> Said | None:
    """The model that was fine-tuned, as logged: a path or a hub id."""
    said = base_param(run.data.params)
    if said is not None:
        return said
    for name, config in config_artifacts(store, run):
        checkpointer = config.get("checkpointer")
        base = config.get("base_model") or (
            checkpointer.get("checkpoint_dir") if isinstance(checkpointer, Mapping) else None
        )
        if isinstance(base, str) and base:
            return Said(base, f"artifact {name}")
    return None


def base_param(params: Mapping[str, str]) -> Said | None:
    """The model that was fine-tuned, where a param says it."""
    for key in BASE_PARAMS:
        if is_set(params.get(key)):
            return Said(params[key], f"param {key}")
    return None


def sixteen_bit(said: Said) -> Said:
    """The 16-bit twin of a 4-bit repository (Unsloth), which is what its fine-tunes merge with."""
    plain = _FOUR_BIT.sub("", said.path)
    if plain == said.path:
        return said
    return Said(plain, f"{said.found_by} without its 4-bit suffix")


def config_artifacts(store: Store, run: Run) -> list[tuple[str, dict[str, Any]]]:
    """The trainers' own config files among the run's artifacts: (path, content)."""
    root = store.open(run.info.artifact_uri)
    found = []
    for place, name in _config_files(root, depth=6):
        raw = place.read(name)
        content = _yaml(raw) if raw else None
        if content:
            found.append((name, content))
    return found


def is_set(value: str | None) -> bool:
    """Whether a logged value says anything."""
    return bool(value) and value not in ("None", "null", "")


def literal(value: str | None) -> Any:
    """The Python value whose ``str()`` was logged; the text itself where it is none."""
    if value is None:
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _config_files(place: Place, depth: int) -> list[tuple[Place, str]]:
    # torchtune logs its config below its whole output path, so it may lie deep.
    found: list[tuple[Place, str]] = []
    try:
        entries = place.entries()
    except SourceError:
        return found
    for entry in entries:
        if not entry.is_dir and (_AXOLOTL.match(entry.name) or entry.name == _TORCHTUNE):
            found.append((place, entry.name))
        elif entry.is_dir and depth and not entry.name.startswith(("checkpoint-", "model")):
            found += _config_files(place.inside(entry.name), depth - 1)
    return found


def _yaml(raw: bytes) -> dict[str, Any] | None:
    import yaml

    try:
        content = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) else None
