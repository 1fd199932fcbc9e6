"""Where tasks and their items come from, as far as files and the hub say all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.evaluate.checks import needs_network
from mergeops.evaluate.tasks import LoadedTask, TaskSet
from mergeops.evaluate.text_files import ENDINGS


@dataclass(frozen=True)
class TaskPlaces:
    """Without a change in any of these the tasks and their items are the same."""

    files: tuple[Path, ...] = ()
    """And directories."""
    hub: tuple[tuple[str, str], ...] = ()
    """Data sets of the hub, ORG/NAME, each with the commit that was read."""


def task_places(tasks: TaskSet) -> TaskPlaces | None:
    """Where the tasks and their items come from.

    Returns:
        None where files and the hub do not say it all: an address, a pattern, Python code of one's
        own, which may read anything, or a file of a task that borrows from another directory.
    """
    spec = tasks.spec
    folders = [Path(spec.include_path).expanduser()] if spec.include_path else []
    files: list[Path] = list(folders)
    hub: list[tuple[str, str]] = []
    for name in spec.tasks:
        if "/" in name or name.endswith((".yaml", ".yml", *ENDINGS)):
            choices = [Path(name).expanduser(), *(folder / name for folder in folders)]
            file = next((choice for choice in choices if choice.is_file()), None)
            if file is None:
                return None
            # Beside a task's file lie its templates and functions.
            files.append(file if file.suffix in ENDINGS else file.parent)
    if any(_borrows(folder) for folder in files if folder.is_dir()):
        return None
    for task in tasks.tasks.values():
        data = TaskPlaces() if _is_text(task) else _data_of(task)
        if data is None:
            return None
        files += data.files
        hub += data.hub
    return TaskPlaces(tuple(files), tuple(dict.fromkeys(hub)))


def _is_text(task: LoadedTask) -> bool:
    """Whether it is the task of a text file, whose passages are all of its data."""
    read = task.task.config.custom_dataset
    return getattr(read, "__module__", "").startswith("mergeops.")


def _data_of(task: LoadedTask) -> TaskPlaces | None:
    config = {k: v for k, v in vars(task.task.config).items() if v is not None}
    own_code = [config.get("process_docs"), config.get("custom_dataset"), type(task.task)]
    if any(not _is_lm_evals(code) for code in own_code if code is not None):
        return None
    path, keywords = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if needs_network(config):
        return _of_hub(task.task, path) if isinstance(path, str) and not keywords else None
    found = [Path(text) for key in ("data_files", "data_dir") for text in _texts(keywords.get(key))]
    if isinstance(path, str) and Path(path).exists():
        found.append(Path(path))
    files = tuple(file for file in found if file.exists())
    return TaskPlaces(files) if files and len(files) == len(found) else None


def _of_hub(task: Any, name: str) -> TaskPlaces | None:
    """A data set of the hub: the library of data sets keeps it in a folder called by its commit."""
    parts = task.dataset.values() if isinstance(task.dataset, Mapping) else [task.dataset]
    files = [Path(file["filename"]) for part in parts for file in getattr(part, "cache_files", [])]
    commits = {file.parent.name for file in files}
    if len(commits) != 1 or not re.fullmatch("[0-9a-f]{40}", min(commits)):
        return None
    return TaskPlaces(tuple(files), ((name, min(commits)),))


def _is_lm_evals(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).startswith("lm_eval.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _borrows(folder: Path) -> bool:
    """Whether a task file below includes another from outside."""
    for file in folder.rglob("*.yaml"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip().startswith("include") and (".." in line or "/" in line):
                return True
    return False
