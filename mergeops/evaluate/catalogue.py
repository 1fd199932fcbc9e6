"""Which tasks there are: find what ``evaluate.tasks`` names, and build it, with clear errors.

lm-eval skips a task file that it cannot parse without a word and resolves data files against the
current directory; here a broken file is an error and a data file may lie beside its YAML.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.preflight import check_config, needs_network, pin_data_files
from mergeops.evaluate.silence import hub_is_reachable, offline


class Catalogue:
    """The tasks of ``include_path`` and, once one of them is asked for, lm-eval's own.

    Args:
        include_path: a directory of task YAML files, searched recursively.

    Raises:
        EvaluationError: no such directory, a file that is no YAML, or a name that two files give.
    """

    def __init__(self, include_path: str | None) -> None:
        from lm_eval.tasks import TaskManager

        self.folder = Path(include_path).expanduser() if include_path else None
        if self.folder is not None:
            if not self.folder.is_dir():
                raise EvaluationError(f"evaluate.include_path {include_path} is no directory")
            _check_files(self.folder)
        self._own = TaskManager(include_path=self.folder, include_defaults=False)
        self._shipped: Any = None
        self._reachable: bool | None = None

    def build(self, name: str) -> list[Any]:
        """The leaf tasks of a task, group or tag name, or of a YAML path, as lm-eval Task objects.

        Raises:
            EvaluationError: unknown name, broken YAML, unknown metric, missing data, no network.
        """
        from lm_eval.tasks._index import Kind

        path = self._as_path(name)
        manager, entry = (self._own, _entry_of(path)) if path else self._lookup(name)
        if entry.kind is Kind.TAG:
            return [
                task for leaf in sorted(entry.tags) for task in self._build_one(manager, leaf, None)
            ]
        if entry.kind is Kind.GROUP and self._borrows(entry):
            manager = self._with_shipped()
        return self._build_one(manager, str(path) if path else name, entry)

    def expand(self, name: str) -> list[str]:
        """The tasks of ``include_path`` that a pattern like ``*`` or ``math_*`` stands for.

        Raises:
            EvaluationError: none does.
        """
        if not any(c in name for c in "*?[") or "/" in name or name.endswith((".yaml", ".yml")):
            return [name]
        from lm_eval.tasks._index import Kind

        leaves = (Kind.TASK, Kind.PY_TASK)
        own = [n for n, entry in self._own.task_index.items() if entry.kind in leaves]
        if found := sorted(fnmatch.filter(own, name)):
            return found
        if self.folder is None:
            where = "set evaluate.include_path to the directory of your own task YAML files"
        else:
            where = f"evaluate.include_path {self.folder} has: {', '.join(sorted(own)) or 'none'}"
        raise EvaluationError(f"evaluate.tasks has {name!r}, which fits no task; {where}")

    def _build_one(self, manager: Any, name: str, entry: Any) -> list[Any]:
        from lm_eval.tasks._index import Kind
        from lm_eval.tasks._yaml_loader import load_yaml

        entry = entry or manager.task_index[name]
        is_group = entry.kind is Kind.GROUP
        config: dict[str, Any] = {}
        spec: Any = name
        with _explained(entry.name, config):
            if not is_group and entry.yaml_path is not None:
                config.update(load_yaml(entry.yaml_path))
                pin_data_files(entry.name, config, Path(entry.yaml_path).parent)
                check_config(entry.name, config)
                # A Python task is built from its YAML alone: lm-eval's own way.
                spec = str(entry.yaml_path) if "class" in config else config
            # What a group's members need is not known before they are built.
            with self._network(is_group or needs_network(config)):
                return list(manager.load([spec])["tasks"].values())

    @contextlib.contextmanager
    def _network(self, needed: bool) -> Iterator[None]:
        """Stay off the network unless it is needed and there; cached data still loads."""
        if needed and self._reachable is None:
            self._reachable = hub_is_reachable()
        with contextlib.nullcontext() if needed and self._reachable else offline():
            yield

    def _as_path(self, name: str) -> Path | None:
        if not (name.endswith((".yaml", ".yml")) or "/" in name):
            return None
        choices = [Path(name).expanduser()]
        if self.folder is not None:
            choices.append(self.folder / name)
        for path in choices:
            if path.is_file():
                return path.resolve()
        raise EvaluationError(f"task file {name} does not exist (from {Path.cwd()})")

    def _lookup(self, name: str) -> tuple[Any, Any]:
        if name in self._own.task_index:
            return self._own, self._own.task_index[name]
        if (file := _shipped_file(name)) is not None:
            return self._own, _entry_of(file)
        manager = self._with_shipped()
        if name in manager.task_index:
            return manager, manager.task_index[name]
        own = sorted(self._own.task_index)
        close = difflib.get_close_matches(name, own, n=1) or difflib.get_close_matches(
            name, manager.task_index, n=1
        )
        hint = f"did you mean {close[0]!r}? " if close else ""
        if self.folder is None:
            where = "set evaluate.include_path to the directory of your own task YAML files"
        else:
            shown = ", ".join(own[:20]) + (", ..." if len(own) > 20 else "")
            where = f"evaluate.include_path {self.folder} has: {shown or 'no tasks'}"
            if not own and any(self.folder.glob("**/*.yml")):
                where += " (only files named *.yaml are read)"
        raise EvaluationError(f"unknown task {name!r}; {hint}{where}")

    def _borrows(self, group: Any) -> bool:
        """Whether a group of our own names tasks that only lm-eval has."""
        members = (group.cfg or {}).get("task") or []
        names = {m if isinstance(m, str) else m.get("task") or m.get("group") for m in members}
        return bool({n for n in names if isinstance(n, str)} - set(self._own.task_index))

    def _with_shipped(self) -> Any:
        from lm_eval.tasks import TaskManager

        if self._shipped is None:  # parses 14,000 files: about 10 s
            self._shipped = TaskManager(include_path=self.folder, include_defaults=True)
        return self._shipped


def _shipped_file(name: str) -> Path | None:
    """The one file of lm-eval that defines a task of this name; None for groups, tags and doubt.

    Looking for one line in 14,000 files takes 0.4 s, parsing them 10 s.
    """
    import lm_eval.tasks

    wanted = re.escape(name.encode())
    definition = re.compile(rb"^(task|group):\s*[\"']?" + wanted + rb"[\"']?\s*(#.*)?$", re.M)
    found = []
    for folder, _, files in os.walk(Path(lm_eval.tasks.__file__).parent):
        for file in files:
            if file.endswith(".yaml"):
                path = Path(folder, file)
                if match := definition.search(path.read_bytes()):
                    found.append((match[1], path))
    return found[0][1] if len(found) == 1 and found[0][0] == b"task" else None


def _check_files(folder: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    seen: dict[str, Path] = {}
    for path in sorted(folder.glob("**/*.yaml")):
        try:
            config = load_yaml(path, resolve_func=False)
        except Exception as error:
            raise EvaluationError(f"task file {path} is broken: {first_line(error)}") from error
        name = config.get("task") if isinstance(config.get("task"), str) else config.get("group")
        if name in seen:
            raise EvaluationError(f"task {name!r} is defined twice: in {seen[name]} and in {path}")
        if isinstance(name, str):  # a file without a name is a template for others
            seen[name] = path


def _entry_of(path: Path) -> Any:
    from lm_eval.tasks._index import TaskIndex

    try:
        entry = TaskIndex.entry_from_path(path)
    except Exception as error:
        raise EvaluationError(f"task file {path} is broken: {first_line(error)}") from error
    if entry is None or not isinstance(entry.name, str):
        raise EvaluationError(f"task file {path} is broken: it needs a key 'task' with a name")
    return entry


@contextlib.contextmanager
def _explained(name: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever lm-eval raises into one line that names the task."""
    try:
        yield
    except EvaluationError:
        raise
    except Exception as error:
        if _is_about_network(error):
            dataset = config.get("dataset_path")
            what = f"dataset {dataset}" if dataset else "data"
            raise EvaluationError(
                f"task {name} needs {what} from the Hugging Face hub, which is not in the local "
                "cache and cannot be reached (no network, or HF_HUB_OFFLINE is set)"
            ) from error
        raise EvaluationError(
            f"task {name} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error


def _is_about_network(error: BaseException) -> bool:
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        names = {cls.__name__ for cls in type(error).__mro__}
        if names & {
            "ConnectionError",
            "ConnectError",
            "OfflineModeIsEnabled",
            "LocalEntryNotFoundError",
            "DatasetNotFoundError",
        }:
            return True
        error = error.__cause__ or error.__context__ or error
    return False


def first_line(error: BaseException) -> str:
    """An exception's message in one line."""
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line)[:300] or type(error).__name__
