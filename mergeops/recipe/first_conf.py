"""A config directory to begin with: where merges are logged and as what, and what scores them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeops.errors import ConfigError
from mergeops.recipe.files import is_written

TEXTS = (".txt", ".md")
_TASK = re.compile(r"^task:\s*[\"']?([\w./ -]+?)[\"']?\s*(#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class FirstConf:
    """What the directory says."""

    experiment: str
    """Of the merges."""
    registered_model: str
    tasks: tuple[str, ...]
    """What scores; empty where nothing was found."""
    tasks_dir: Path | None
    """Where the tasks lie."""


def tasks_in(folder: Path) -> tuple[str, ...]:
    """The lm-eval tasks and the texts of a directory, by name and by path."""
    names: list[str] = []
    for path in sorted(folder.rglob("*.yaml")):
        names += [match[1] for match in _TASK.finditer(path.read_text("utf-8", "replace"))]
    texts = sorted(path for path in folder.iterdir() if path.suffix in TEXTS)
    # Bits per byte and right answers cannot be one number, so texts are for those without tasks.
    return tuple(names) or tuple(str(path) for path in texts if path.stem.lower() != "readme")


def write_first_conf(conf: FirstConf, folder: Path, *, force: bool = False) -> list[Path]:
    """Write tracking/default.yaml and evaluate/default.yaml, which win over the packaged ones.

    Args:
        force: replace what is there.

    Returns:
        The files.

    Raises:
        ConfigError: one is there already and says something else, or cannot be written.
    """
    files = {
        folder / "tracking" / "default.yaml": _tracking(conf),
        folder / "evaluate" / "default.yaml": _evaluate(conf),
    }
    for path, text in files.items():
        if path.exists() and not (force or is_written(path, text)):
            raise ConfigError(
                f"{path} is there; add --force to replace it, or choose another directory by --dir"
            )
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from error
    return list(files)


def _tracking(conf: FirstConf) -> str:
    return (
        "# Where merges are logged: MLFLOW_TRACKING_URI, or the uri written here.\n"
        f"experiment: {json.dumps(conf.experiment, ensure_ascii=False)}\n"
        f"registered_model: {json.dumps(conf.registered_model, ensure_ascii=False)}"
        " # its versions are the merges; `mergeops promote` moves its @champion\n"
    )


def _evaluate(conf: FirstConf) -> str:
    lines = [
        "# What scores merges and their parents: lm-eval tasks by name, YAML files of your own, or",
        "# a text that no source was trained on, e.g. [arc_easy], [tasks/mine.yaml], [held.txt].",
        f"tasks: {_list(conf.tasks)}",
    ]
    if conf.tasks_dir is not None:
        lines.append(f"include_path: {json.dumps(str(conf.tasks_dir), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _list(names: Sequence[str]) -> str:
    return json.dumps(list(names), ensure_ascii=False)
