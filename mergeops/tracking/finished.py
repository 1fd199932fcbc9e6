"""What a finished trial stood on, kept beside the work, so that the same command again is quick.

A note says what the trial was made of: the recipe, the program and all that is installed, the files
of sources and tasks as the file system describes them, and what MLflow says of the runs, models and
versions. Where every one of these is as it was, the trial is what it was, and neither torch nor
transformers, lm-eval or MLflow need be imported to know. Where anything differs, or cannot be known
without them, there is no note, and the trial goes its usual way, which finds what is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops import methods
from mergeops.checkpoint import as_seen, look_at, older_than, replace_with
from mergeops.recipe import Recipe
from mergeops.sources import Resolved, Source, commit_of, local_path
from mergeops.store import Subjects, glance
from mergeops.version import __version__

FORMAT = 1
NOTES = "finished"
"""Folder of the work directory."""
DECISIVE = ("CUDA_VISIBLE_DEVICES", "HF_", "LM_EVAL", "MERGEOPS_", "TRANSFORMERS_")
"""What variables begin with that may decide something; MLflow's say where it is."""
SECRET = ("KEY", "PASSWORD", "SECRET", "TOKEN")
INDIFFERENT = ("MERGEOPS_PROGRESS", "MERGEOPS_SUBMITTED_BY")


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """What a note is made of."""

    result: Mapping[str, Any]
    """As JSON types: what the command shows."""
    run_id: str
    version: tuple[str, int] | None
    resolved: Resolved
    task_places: Sequence[Path]
    hub_data: Sequence[tuple[str, str]]
    """Data sets of the hub, each with the commit that was read."""
    checkpoint: Path


@dataclass(frozen=True)
class Beginning:
    """When a command began, and what it is then; libraries change variables and paths later."""

    recipe: Recipe
    key: str | None = field(init=False)
    """Names all that decides the trial but its files and MLflow; None where that is not all."""
    began_ns: int = field(init=False, default_factory=time.time_ns)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _key(self.recipe))


def recall(beginning: Beginning) -> dict[str, Any] | None:
    """The result that the note of this recipe's trial holds; None where it is not known to hold."""
    recipe, key = beginning.recipe, beginning.key
    if key is None:
        return None
    try:
        kept = json.loads(_file(recipe, key).read_text(encoding="utf-8"))
        note = kept["note"]
        if kept["format"] != FORMAT or kept["sha256"] != _sha256(note) or note["key"] != key:
            return None
        for places, seen in ((note["inputs"], note["seen"]), (note["made"], note["seen_made"])):
            if not as_seen(map(Path, places), seen):
                return None
        about = {name: _as_tuple(value) for name, value in note["about"].items()}
        if glance(recipe.tracking, Subjects(**about)) != note["said"]:
            return None
        if any(commit_of(name, kind) != commit for kind, name, commit in note["hub"]):
            return None
        result: dict[str, Any] = note["result"]
        return result
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def note_finished(beginning: Beginning, trial: FinishedTrial) -> bool:
    """Keep a note of a trial that is finished, where everything that it stood on can be watched.

    Args:
        beginning: of the trial's command: an input that was written since may not be what was read.
        trial: what it was.

    Returns:
        Whether there is a note now.
    """
    recipe, key, sources = beginning.recipe, beginning.key, _sources(trial.resolved)
    prompts = list(dict.fromkeys(recipe.prompts.values()))
    places = [*_places(sources), *prompts, *trial.task_places]
    if key is None or not all(_is_watched(source, recipe) for source in sources):
        return False
    seen, made = look_at(places), look_at([trial.checkpoint])
    if seen is None or made is None or not older_than(seen, beginning.began_ns):
        return False
    about = Subjects(
        experiment=recipe.tracking.experiment,
        runs=(trial.run_id, *_unique(source.run_id for source in sources)),
        version=trial.version,
        names=_unique(s.registered.rpartition("/")[0] for s in sources if s.registered),
        models=_unique(source.model_id for source in sources),
        weights=_unique(source.sha256 for source in sources) if recipe.evaluate.tasks else (),
    )
    said = glance(recipe.tracking, about)
    if said is None:
        return False
    note = {
        "key": key,
        "inputs": [str(place.absolute()) for place in places],
        "seen": seen,
        "made": [str(trial.checkpoint.absolute())],
        "seen_made": made,
        "about": vars(about),
        "said": said,
        "hub": [*_hub(sources), *_hub_data(trial.hub_data)],
        "result": trial.result,
    }
    # As it will be read.
    note = json.loads(json.dumps(note))
    file = _file(recipe, key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_with(file, sync=False) as partial:
            text = json.dumps({"format": FORMAT, "sha256": _sha256(note), "note": note})
            partial.write_text(text, encoding="utf-8")
    except OSError:
        # The next command takes longer.
        return False
    return True


def _key(recipe: Recipe) -> str | None:
    is_ours = methods.get(recipe.method.name).merge.__module__.startswith("mergeops.")
    if not is_ours or recipe.trust_remote_code or recipe.merges or recipe.tracking.offline:
        return None
    installed = _installed()
    if installed is None:
        return None
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(DECISIVE) and name not in INDIFFERENT and not _is_secret(name)
    }
    program = [__version__, sys.version, sys.executable, _program(), installed]
    return _sha256([recipe.to_dict(), os.getcwd(), program, variables])


def _is_secret(name: str) -> bool:
    return any(word in name for word in SECRET)


def _program() -> str:
    """The files of this package, as the file system describes them."""
    root = Path(__file__).parent.parent
    found = [(str(file), *_size_and_time(file)) for file in sorted(root.rglob("*.py"))]
    return _sha256(found)


def _installed() -> str | None:
    """Every distribution that Python may import; None where one may change without a new version.

    A distribution is a folder that is named by its version, and made anew when it is installed.
    """
    found = []
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.startswith("__editable__") and "mergeops" not in name:
                return None
            if name.endswith((".egg-link", "easy-install.pth")):
                return None
            if name.endswith((".dist-info", ".egg-info", ".pth")):
                found.append((folder, name, _size_and_time(Path(folder, name))[1]))
    return _sha256(sorted(found))


def _size_and_time(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _sources(resolved: Resolved) -> list[Source]:
    return [*([resolved.base] if resolved.base else []), *resolved.sources.values()]


def _places(sources: Iterable[Source]) -> list[Path]:
    places: dict[Path, None] = {}
    for source in sources:
        # A run's best checkpoint is one of those that lie side by side.
        is_chosen = source.uri.startswith(("runs:/", "models:/"))
        places[source.path.parent if is_chosen else source.path] = None
        if source.adapter_base is not None:
            places[source.adapter_base] = None
    for place in list(places):
        if place.parent.name == "snapshots" and (place.parent.parent / "refs").is_dir():
            # The hub's cache: which commit a name means here.
            places[place.parent.parent / "refs"] = None
    return list(places)


def _is_watched(source: Source, recipe: Recipe) -> bool:
    """Whether its files on this machine, MLflow and the hub say all that there is to know of it."""
    cache = Path(recipe.output.dir, "cache").absolute()
    paths = [path.absolute() for path in (source.path, source.adapter_base) if path is not None]
    if any(path.is_relative_to(cache) for path in paths):
        # Downloaded, converted or completed: what it was made from lies elsewhere.
        return False
    named = recipe.sources.get(source.name)
    own_base = named.base if named is not None and named.base != recipe.base else None
    if own_base is not None and local_path(own_base) is None:
        return False
    known = source.uri.startswith(("runs:/", "models:/", "hf://"))
    return known or local_path(source.uri) is not None


def _hub(sources: Iterable[Source]) -> list[list[str]]:
    """The hub's repositories that a source names, with the commit that was read."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return []
    named = {(s.uri, s.revision) for s in sources if s.uri.startswith("hf://") and s.revision}
    return [
        ["model", uri.removeprefix("hf://"), commit]
        for uri, commit in sorted(named)
        if not uri.endswith(f"@{commit}")
    ]


def _hub_data(found: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [] if _stays_off_the_hub() else [["dataset", *each] for each in found]


def _stays_off_the_hub() -> bool:
    return bool(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"))


def _unique(found: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in found if each))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _file(recipe: Recipe, key: str) -> Path:
    return Path(recipe.output.dir, NOTES, f"{key[:32]}.json")


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
