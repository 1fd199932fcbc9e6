"""Which tasks there are: find what ``evaluate.tasks`` names, and build it, with clear errors.

lm-eval skips a task file that it cannot parse without a word and resolves data files against the
current directory; here a broken file is an error and a data file may lie beside its YAML.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.checks import check_config, needs_network, pin_data_files
from mergeops.evaluate.silence import hub_is_reachable, offline
from mergeops.evaluate.text_files import ENDINGS, text_config
from mergeops.schema import did_you_mean

_NETWORK_ERRORS = (
    "ConnectionError",
    "ConnectError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "DatasetNotFoundError",
)


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

    def build(self, name: str) -> tuple[list[Any], Any]:
        """The leaf tasks of a task, group or tag name, or of a YAML path, as lm-eval Task objects;
        of the path of a text file the task that measures its bits per byte.

        Of a group also lm-eval's Group, which says how it has a number of its own; else None.

        Raises:
            EvaluationError: unknown name, broken YAML, unknown metric, missing data, no network.
        """
        path = self._as_path(name)
        if path is not None and path.suffix in ENDINGS:
            with _explained(path.stem, {}):
                return list(self._own.load([text_config(path)])["tasks"].values()), None
        manager, entry = (self._own, _entry_of(path)) if path else self._lookup(name)
        if entry.kind.name == "TAG":
            leaves = sorted(entry.tags)
            return [t for leaf in leaves for t in self._build_one(manager, leaf)[0]], None
        if entry.kind.name == "GROUP" and self._borrows(entry):
            manager = self._with_shipped
        return self._build_one(manager, str(path) if path else name, entry)

    def expand(self, name: str) -> list[str]:
        """The tasks of ``include_path`` that a pattern like ``*`` or ``math_*`` stands for.

        Raises:
            EvaluationError: none does.
        """
        if not any(c in name for c in "*?[") or "/" in name or name.endswith((".yaml", ".yml")):
            return [name]
        index = self._own.task_index
        own = sorted(n for n, entry in index.items() if entry.kind.name in ("TASK", "PY_TASK"))
        if fitting := fnmatch.filter(own, name):
            return fitting
        if self.folder is None:
            where = "set evaluate.include_path to the directory of your own task YAML files"
        else:
            where = f"evaluate.include_path {self.folder} has: {', '.join(own) or 'none'}"
        raise EvaluationError(f"evaluate.tasks has {name!r}, which fits no task; {where}")

    def _build_one(self, manager: Any, name: str, entry: Any = None) -> tuple[list[Any], Any]:
        from lm_eval.tasks._yaml_loader import load_yaml

        entry = entry or manager.task_index[name]
        is_group = entry.kind.name == "GROUP"
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
            may_download = (is_group or needs_network(config)) and self._hub_is_reachable
            # Off the network, cached data still loads.
            with contextlib.nullcontext() if may_download else offline():
                loaded = manager.load([spec])
            return list(loaded["tasks"].values()), loaded["groups"].get(entry.name)

    @cached_property
    def _hub_is_reachable(self) -> bool:
        return hub_is_reachable()

    def _as_path(self, name: str) -> Path | None:
        if not (name.endswith((".yaml", ".yml", *ENDINGS)) or "/" in name):
            return None
        choices = [Path(name).expanduser()]
        if self.folder is not None:
            choices.append(self.folder / name)
        for path in choices:
            if path.is_file():
                return path.resolve()
        kind = "text" if name.endswith(ENDINGS) else "task"
        raise EvaluationError(f"{kind} file {name} does not exist (from {Path.cwd()})")

    def _lookup(self, name: str) -> tuple[Any, Any]:
        if name in self._own.task_index:
            return self._own, self._own.task_index[name]
        if (file := _shipped_file(name)) is not None:
            return self._own, _entry_of(file)
        manager = self._with_shipped
        if name in manager.task_index:
            return manager, manager.task_index[name]
        own = sorted(self._own.task_index)
        hint = did_you_mean(name, own) or did_you_mean(name, manager.task_index)
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

    @cached_property
    def _with_shipped(self) -> Any:
        """lm-eval's own tasks too; it parses 14,000 files, which takes about 10 s."""
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self.folder, include_defaults=True)


def _shipped_file(name: str) -> Path | None:
    """The one file of lm-eval that defines a task of this name; None for groups, tags and doubt.

    Looking for one line in 14,000 files takes 0.4 s, parsing them 10 s.
    """
    import lm_eval.tasks

    wanted = re.escape(name.encode())
    definition = re.compile(rb"^(task|group):\s*[\"']?" + wanted + rb"[\"']?\s*(#.*)?$", re.M)
    definitions = [
        (match[1], path)
        for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
        if (match := definition.search(path.read_bytes()))
    ]
    return definitions[0][1] if [kind for kind, _ in definitions] == [b"task"] else None


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
            needed = f"dataset {dataset}" if dataset else "data"
            raise EvaluationError(
                f"task {name} needs {needed} from the Hugging Face hub, which is not in the local "
                "cache and cannot be reached (no network, or HF_HUB_OFFLINE is set)"
            ) from error
        raise EvaluationError(
            f"task {name} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error


def _is_about_network(error: BaseException) -> bool:
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if any(cls.__name__ in _NETWORK_ERRORS for cls in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__ or error
    return False


def first_line(error: BaseException) -> str:
    """An exception's message in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(filter(None, lines))[:300] or type(error).__name__
