"""Where a run's params and logged config files say that its checkpoints are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError
from mergeops.schema import read_yaml
from mergeops.sources.remote.directory import Directory
from mergeops.sources.run_note import RunTags
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import Run

OUTPUT_PARAMS = (
    "output_dir",
    "checkpoint.checkpoint_dir",
    "checkpointer.output_dir",
    "trainer/default_local_dir",
)
"""HF Trainer and torchtune; NeMo Automodel; torchtune's checkpointer; verl."""

_AXOLOTL = re.compile(r"^axolotl_config_.*\.ya?ml$")
_TORCHTUNE = "torchtune_config.yaml"


@dataclass(frozen=True)
class Said:
    """One fact and where the run says it."""

    path: str
    found_by: str


def output_directories(store: TrainingRuns, run: Run) -> list[Said]:
    """The directories that the trainer wrote to, as logged."""
    params = run.data.params
    tagged = run.data.tags.get(RunTags.OUTPUT_DIR)
    if tagged:
        return [Said(tagged, f"tag {RunTags.OUTPUT_DIR}")]
    logged = [Said(params[key], f"param {key}") for key in OUTPUT_PARAMS if is_set(params.get(key))]
    return logged or [
        Said(str(config["output_dir"]), f"artifact {name}")
        for name, config in config_artifacts(store, run)
        if isinstance(config.get("output_dir"), str)
    ]


def config_artifacts(store: TrainingRuns, run: Run) -> list[tuple[str, dict[str, Any]]]:
    """The trainers' own config files among the run's artifacts: (path, content)."""
    configs = []
    for directory, name in _config_files(store.open(run.info.artifact_uri), depth=6):
        content = _yaml(directory.read(name) or b"")
        if content:
            configs.append((name, content))
    return configs


def is_set(value: str | None) -> bool:
    """Whether a logged value says anything."""
    return bool(value) and value not in ("None", "null", "")


def _config_files(directory: Directory, depth: int) -> Iterator[tuple[Directory, str]]:
    # torchtune logs its config below its whole output path, so it may lie deep.
    try:
        entries = directory.entries()
    except SourceError:
        return
    for entry in entries:
        if not entry.is_dir and (_AXOLOTL.match(entry.name) or entry.name == _TORCHTUNE):
            yield directory, entry.name
        elif entry.is_dir and depth and not entry.name.startswith(("checkpoint-", "model")):
            yield from _config_files(directory.inside(entry.name), depth - 1)


def _yaml(raw: bytes) -> dict[str, Any] | None:
    try:
        content = read_yaml(raw)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
